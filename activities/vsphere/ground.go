package vsphere

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"drover/workflows/api"
)

// ground is where a VM is to be made: all that an api.Location names, found in vCenter.
type ground struct {
	host     mo.HostSystem
	master   *types.ManagedObjectReference // the master target's host, if it is known
	pool     types.ManagedObjectReference
	folder   types.ManagedObjectReference
	store    mo.Datastore
	networks []types.BaseVirtualDeviceBackingInfo // of the machine's cards, in their order
	netRefs  []types.ManagedObjectReference
	name     string
}

// maxTold bounds what an error lists of what there is.
const maxTold = 20

// groundOf finds all that the location names, and refuses what would not do, before
// anything is made: a host that cannot run it, a datastore without room or that master
// target or host cannot write, a network that is not there, a name that is taken, a
// privilege that lacks.
func (s *session) groundOf(ctx context.Context, in api.MakeVMInput) (ground, error) {
	g := ground{name: in.At.Name}
	if g.name == "" {
		g.name = in.VM.Name
	}
	for _, find := range []func(context.Context, api.MakeVMInput, *ground) error{
		s.findHost, s.findDatastore, s.findPool, s.findFolder, s.findNetworks, s.mayMake,
	} {
		if err := find(ctx, in, &g); err != nil {
			return g, err
		}
	}
	return g, nil
}

// all reads properties of all objects of a kind.
func (s *session) all(ctx context.Context, kind string, properties []string, into any) error {
	v, err := view.NewManager(s.client.Client).CreateContainerView(ctx, s.client.ServiceContent.RootFolder, []string{kind}, true)
	if err != nil {
		return failed(api.CodeVCenter, err, "list what vCenter %s has of %s", s.name, kind)
	}
	defer func() { _ = v.Destroy(context.WithoutCancel(ctx)) }()
	if err := v.Retrieve(ctx, []string{kind}, properties, into); err != nil {
		return failed(api.CodeVCenter, err, "list what vCenter %s has of %s", s.name, kind)
	}
	return nil
}

// read reads properties of objects that are known.
func (s *session) read(ctx context.Context, refs []types.ManagedObjectReference, properties []string, into any) error {
	if len(refs) == 0 {
		return nil
	}
	if err := property.DefaultCollector(s.client.Client).Retrieve(ctx, refs, properties, into); err != nil {
		return failed(api.CodeVCenter, err, "read %s from vCenter %s", refs[0], s.name)
	}
	return nil
}

// pick finds the one thing of a name. where tells people where it was looked for.
func pick[T any](all []T, nameOf func(T) string, name, what, where string) (T, error) {
	var found []T
	var there []string
	for _, x := range all {
		if n := escaped.Replace(nameOf(x)); n == name {
			found = append(found, x)
		} else {
			there = append(there, n)
		}
	}
	var none T
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		slices.Sort(there)
		text := strings.Join(there[:min(len(there), maxTold)], ", ")
		if text == "" {
			text = "nothing"
		}
		return none, failed(api.CodeInvalid, nil, "%s has no %s named %q; there is %s", where, what, name, text)
	}
	return none, failed(api.CodeInvalid, nil, "%s has %d %ss named %q: which one is meant is not known", where, len(found), what, name)
}

var hostProperties = []string{"name", "parent", "datastore", "network", "runtime.connectionState", "runtime.inMaintenanceMode", "runtime.powerState"}

func (s *session) findHost(ctx context.Context, in api.MakeVMInput, g *ground) error {
	if in.MasterTarget != "" {
		vm, err := s.byName(ctx, in.MasterTarget)
		if err != nil {
			return err
		}
		host, err := vm.HostSystem(ctx)
		if err != nil {
			return failed(api.CodeVCenter, err, "find the host of master target %s in vCenter %s", in.MasterTarget, s.name)
		}
		ref := host.Reference()
		g.master = &ref
	}
	var hosts []mo.HostSystem
	if err := s.all(ctx, "HostSystem", hostProperties, &hosts); err != nil {
		return err
	}
	name := func(h mo.HostSystem) string { return h.Name }
	switch {
	case in.At.Host != "":
		h, err := pick(hosts, name, in.At.Host, "host", "vCenter "+s.name)
		if err != nil {
			return err
		}
		g.host = h
	case g.master != nil:
		i := slices.IndexFunc(hosts, func(h mo.HostSystem) bool { return h.Self == *g.master })
		if i < 0 {
			return failed(api.CodeVCenterDenied, nil, "the user does not see the host of master target %s in vCenter %s: give it Read-only there", in.MasterTarget, s.name)
		}
		g.host = hosts[i]
	default:
		return s.anyHost(ctx, in, hosts, g)
	}
	return usable(g.host)
}

// anyHost takes the first that can run the VM: it is only asked whether there is one.
func (s *session) anyHost(ctx context.Context, in api.MakeVMInput, hosts []mo.HostSystem, g *ground) error {
	slices.SortFunc(hosts, func(a, b mo.HostSystem) int { return strings.Compare(a.Name, b.Name) })
	var why error
	for _, h := range hosts {
		g.host = h
		if err := usable(h); err != nil {
			why = err
			continue
		}
		err := s.findDatastore(ctx, in, g)
		if err == nil {
			return nil
		}
		why = err
	}
	if why == nil {
		why = failed(api.CodeInvalid, nil, "vCenter %s shows no host", s.name)
	}
	return why
}

func usable(h mo.HostSystem) error {
	state := ""
	switch {
	case h.Runtime.ConnectionState != types.HostSystemConnectionStateConnected:
		state = string(h.Runtime.ConnectionState)
	case h.Runtime.InMaintenanceMode:
		state = "in maintenance mode"
	case h.Runtime.PowerState != "" && h.Runtime.PowerState != types.HostSystemPowerStatePoweredOn:
		state = string(h.Runtime.PowerState)
	default:
		return nil
	}
	return failed(api.CodeInvalid, nil, "host %s is %s: name another one", h.Name, state)
}

func (s *session) findDatastore(ctx context.Context, in api.MakeVMInput, g *ground) error {
	var stores []mo.Datastore
	if err := s.read(ctx, g.host.Datastore, []string{"name", "summary", "host"}, &stores); err != nil {
		return err
	}
	d, err := pick(stores, func(d mo.Datastore) string { return d.Name }, in.At.Datastore, "datastore", "host "+g.host.Name)
	if err != nil {
		return err
	}
	g.store = d
	switch {
	case !d.Summary.Accessible || !writable(d, g.host.Self):
		return failed(api.CodeInvalid, nil, "datastore %s cannot be written from host %s", d.Name, g.host.Name)
	case d.Summary.MaintenanceMode != "" && d.Summary.MaintenanceMode != string(types.DatastoreSummaryMaintenanceModeStateNormal):
		return failed(api.CodeInvalid, nil, "datastore %s is in maintenance mode", d.Name)
	case g.master != nil && !writable(d, *g.master):
		return failed(api.CodeInvalid, nil, "datastore %s cannot be written from the host of master target %s: mount it there, or name another", d.Name, in.MasterTarget)
	}
	need := int64(in.VM.MemoryMB) << 20 // the swap file of a running VM
	for _, disk := range in.Disks {
		need += disk.Size
	}
	if d.Summary.FreeSpace < need {
		return failed(api.CodeInvalid, nil, "datastore %s has %s free, and VM %s needs %s when its thin disks are full: make room or name another",
			d.Name, api.Size(d.Summary.FreeSpace), in.VM.Name, api.Size(need))
	}
	return nil
}

// writable reports whether the host has the datastore mounted to read and write.
func writable(d mo.Datastore, host types.ManagedObjectReference) bool {
	for _, m := range d.Host {
		i := m.MountInfo
		if m.Key == host {
			return i.AccessMode == string(types.HostMountModeReadWrite) && (i.Mounted == nil || *i.Mounted) && (i.Accessible == nil || *i.Accessible)
		}
	}
	return false
}

func (s *session) findPool(ctx context.Context, in api.MakeVMInput, g *ground) error {
	if g.host.Parent == nil {
		return failed(api.CodeVCenter, nil, "vCenter %s does not say to what host %s belongs", s.name, g.host.Name)
	}
	if in.At.Pool == "" {
		var of []mo.ComputeResource
		if err := s.read(ctx, []types.ManagedObjectReference{*g.host.Parent}, []string{"resourcePool"}, &of); err != nil {
			return err
		}
		if len(of) != 1 || of[0].ResourcePool == nil {
			return failed(api.CodeVCenterDenied, nil, "the user does not see the resources of host %s in vCenter %s", g.host.Name, s.name)
		}
		g.pool = *of[0].ResourcePool
		return nil
	}
	var pools []mo.ResourcePool
	if err := s.all(ctx, "ResourcePool", []string{"name", "owner"}, &pools); err != nil {
		return err
	}
	pools = slices.DeleteFunc(pools, func(p mo.ResourcePool) bool { return p.Owner != *g.host.Parent })
	p, err := pick(pools, func(p mo.ResourcePool) string { return p.Name }, in.At.Pool, "resource pool", "the cluster of host "+g.host.Name)
	g.pool = p.Self
	return err
}

// findFolder walks from the folder of the datacenter's VMs to the one that is named, in
// which nothing may have the VM's name.
func (s *session) findFolder(ctx context.Context, in api.MakeVMInput, g *ground) error {
	dc, err := s.datacenterOf(ctx, g.host)
	if err != nil {
		return err
	}
	folders, err := dc.Folders(ctx)
	if err != nil {
		return failed(api.CodeVCenter, err, "read the folders of a datacenter of vCenter %s", s.name)
	}
	g.folder = folders.VmFolder.Reference()
	where := "the datacenter"
	children, err := s.children(ctx, g.folder)
	for _, part := range strings.FieldsFunc(in.At.Folder, func(r rune) bool { return r == '/' }) {
		if err != nil {
			return err
		}
		children = slices.DeleteFunc(children, func(c mo.ManagedEntity) bool { return c.Self.Type != kindFolder })
		next, err := pick(children, entityName, part, "folder", where)
		if err != nil {
			return err
		}
		g.folder, where = next.Self, "folder "+part
		children, err = s.children(ctx, g.folder)
		if err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	for _, c := range children {
		if escaped.Replace(c.Name) == g.name {
			return failed(api.CodeInvalid, nil, "in vCenter %s, %s has something named %s already: give the VM another name or folder", s.name, where, g.name)
		}
	}
	return nil
}

func entityName(e mo.ManagedEntity) string { return e.Name }

func (s *session) children(ctx context.Context, folder types.ManagedObjectReference) ([]mo.ManagedEntity, error) {
	var f []mo.Folder
	if err := s.read(ctx, []types.ManagedObjectReference{folder}, []string{"childEntity"}, &f); err != nil {
		return nil, err
	}
	var out []mo.ManagedEntity
	if len(f) == 1 {
		if err := s.read(ctx, f[0].ChildEntity, []string{"name"}, &out); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (s *session) datacenterOf(ctx context.Context, host mo.HostSystem) (*object.Datacenter, error) {
	above, err := mo.Ancestors(ctx, s.client.Client, s.client.ServiceContent.PropertyCollector, host.Self)
	if err != nil {
		return nil, failed(api.CodeVCenter, err, "find the datacenter of host %s in vCenter %s", host.Name, s.name)
	}
	for _, e := range above {
		if e.Self.Type == "Datacenter" {
			dc := object.NewDatacenter(s.client.Client, e.Self)
			// Folders asks for the path.
			element, err := find.NewFinder(s.client.Client).Element(ctx, e.Self)
			if err != nil {
				return nil, failed(api.CodeVCenter, err, "find the datacenter of host %s in vCenter %s", host.Name, s.name)
			}
			dc.InventoryPath = element.Path
			return dc, nil
		}
	}
	return nil, failed(api.CodeVCenter, nil, "vCenter %s does not say to which datacenter host %s belongs", s.name, host.Name)
}

// findNetworks finds for each network card the network that it is to be in.
func (s *session) findNetworks(ctx context.Context, in api.MakeVMInput, g *ground) error {
	var all []mo.Network
	if err := s.read(ctx, g.host.Network, []string{"name"}, &all); err != nil {
		return err
	}
	used := map[string]bool{}
	for _, card := range in.VM.NICs {
		name, mapped := in.At.Networks[card.Network]
		if !mapped {
			name = card.Network
		}
		used[card.Network] = true
		found, err := pick(all, func(n mo.Network) string { return n.Name }, name, "network", "host "+g.host.Name)
		if err != nil {
			return failed(api.CodeInvalid, nil, "%s of VM %s was in network %s, and %s; name the network to take instead (networks: {%q: NAME})",
				card.Label, in.VM.Name, card.Network, messageOf(err), card.Network)
		}
		backing, err := s.backing(ctx, found)
		if err != nil {
			return err
		}
		g.networks, g.netRefs = append(g.networks, backing), append(g.netRefs, found.Self)
	}
	for from := range in.At.Networks {
		if !used[from] {
			return failed(api.CodeInvalid, nil, "networks: VM %s had no network card in %q", in.VM.Name, from)
		}
	}
	return nil
}

func (s *session) backing(ctx context.Context, network mo.Network) (types.BaseVirtualDeviceBackingInfo, error) {
	n, ok := object.NewReference(s.client.Client, network.Self).(object.NetworkReference)
	if !ok {
		return nil, failed(api.CodeInvalid, nil, "network %s of vCenter %s is a %s, in which Drover cannot put a VM", network.Name, s.name, network.Self.Type)
	}
	b, err := n.EthernetCardBackingInfo(ctx)
	if err != nil {
		return nil, failed(api.CodeVCenter, err, "read network %s in vCenter %s", network.Name, s.name)
	}
	return b, nil
}

// mayMake asks for the privileges on the very objects.
func (s *session) mayMake(ctx context.Context, _ api.MakeVMInput, g *ground) error {
	user, err := s.client.SessionManager.UserSession(ctx)
	if err != nil {
		return failed(api.CodeVCenter, err, "ask vCenter %s who its user is", s.name)
	}
	if user == nil {
		return failed(api.CodeVCenterAway, nil, "vCenter %s ended the session", s.name)
	}
	on := map[string][]mo.ManagedEntity{
		kindDatacenter: {entity(g.folder, "the folder of the VM")}, // where it has these privileges from the datacenter
		kindPool:       {entity(g.pool, "the resource pool")},
		kindDatastore:  {entity(g.store.Self, g.store.Name)},
	}
	for i, ref := range g.netRefs {
		on[kindNetwork] = append(on[kindNetwork], entity(ref, fmt.Sprintf("the network of card %d", i+1)))
	}
	var lacks []string
	for _, n := range allNeeds {
		if n.function != api.VCenterRemake || len(on[n.kind]) == 0 {
			continue
		}
		missing, err := s.lacks(ctx, user.Key, n, on[n.kind])
		if err != nil {
			return err
		}
		for _, m := range missing {
			lacks = append(lacks, m.Privilege+" on "+strings.Join(m.On, ", "))
		}
	}
	if len(lacks) > 0 {
		return failed(api.CodeVCenterDenied, nil, "user %s may not make the VM in vCenter %s: it lacks %s; see drover vcenter check", user.UserName, s.name, strings.Join(lacks, "; "))
	}
	return nil
}

func entity(ref types.ManagedObjectReference, name string) mo.ManagedEntity {
	return mo.ManagedEntity{ExtensibleManagedObject: mo.ExtensibleManagedObject{Self: ref}, Name: name}
}
