package vsphere

import (
	"context"
	"slices"

	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"drover/workflows/api"
)

const privilegePage = 500 // objects in one question

// needs are the privileges of a function on objects of a kind.
type needs struct {
	function, kind string
	privileges     []string
}

// Kinds of objects.
const (
	kindVM        = "VirtualMachine"
	kindFolder    = "Folder"
	kindDatastore = "Datastore"
	// Of a VM that is made anew; what it takes of the folder comes from the datacenter.
	kindDatacenter = "Datacenter"
	kindPool       = "ResourcePool"
	kindNetwork    = "Network"
)

// allNeeds is the least that each function takes; docs/vsphere.md has the same as a role.
// Deleting a VM is among it only where Drover makes VMs: an undone failback deletes its own.
var allNeeds = []needs{
	{api.VCenterDiscover, kindVM, []string{"System.View", "System.Read"}},
	{api.VCenterDiscover, kindFolder, []string{"System.View", "System.Read"}},
	{api.VCenterFailover, kindVM, []string{"VirtualMachine.Interact.PowerOff", "VirtualMachine.Interact.PowerOn"}},
	{api.VCenterFailback, kindVM, []string{
		"VirtualMachine.Interact.PowerOff", "VirtualMachine.Interact.PowerOn",
		"VirtualMachine.Config.AddExistingDisk", "VirtualMachine.Config.RemoveDisk", "VirtualMachine.Config.AddRemoveDevice",
		"VirtualMachine.Config.EditDevice", "VirtualMachine.State.RemoveSnapshot",
	}},
	{api.VCenterFailback, kindDatastore, []string{"Datastore.Browse", "Datastore.FileManagement"}},
	{api.VCenterRemake, kindDatacenter, []string{
		"VirtualMachine.Inventory.Create", "VirtualMachine.Inventory.Delete", "VirtualMachine.Config.AddNewDisk", "VirtualMachine.Config.AdvancedConfig",
	}},
	{api.VCenterRemake, kindPool, []string{"Resource.AssignVMToPool"}},
	{api.VCenterRemake, kindDatastore, []string{"Datastore.AllocateSpace"}},
	{api.VCenterRemake, kindNetwork, []string{"Network.Assign"}},
	{api.VCenterPush, kindVM, []string{
		"VirtualMachine.GuestOperations.Query", "VirtualMachine.GuestOperations.Modify", "VirtualMachine.GuestOperations.Execute",
	}},
}

// CheckPrivileges says which privileges the user lacks for the functions, on which objects.
func (a *Activities) CheckPrivileges(ctx context.Context, in api.CheckVCenterInput) (api.VCenterCheck, error) {
	for _, f := range in.Functions {
		if !slices.Contains(api.VCenterFunctions, f) {
			return api.VCenterCheck{}, failed(api.CodeInvalid, nil, "function %q: want one of %v", f, api.VCenterFunctions)
		}
	}
	vcenter, err := a.config.Lookup(ctx, in.VCenter)
	if err != nil {
		return api.VCenterCheck{}, err
	}
	var out api.VCenterCheck
	err = a.on(ctx, vcenter, func(s *session) (err error) {
		out, err = s.check(ctx, in.Functions)
		return err
	})
	return out, err
}

func (s *session) check(ctx context.Context, functions []string) (api.VCenterCheck, error) {
	user, err := s.client.SessionManager.UserSession(ctx)
	if err != nil {
		return api.VCenterCheck{}, failed(api.CodeVCenter, err, "ask vCenter %s who its user is", s.name)
	}
	if user == nil {
		return api.VCenterCheck{}, failed(api.CodeVCenterAway, nil, "vCenter %s ended the session", s.name)
	}
	out := api.VCenterCheck{User: user.UserName, Version: s.client.ServiceContent.About.FullName, Missing: []api.MissingPrivilege{}}
	seen := map[string][]mo.ManagedEntity{}
	for _, n := range allNeeds {
		if !slices.Contains(functions, n.function) {
			continue
		}
		objects, looked := seen[n.kind]
		if !looked {
			if objects, err = s.objects(ctx, n.kind); err != nil {
				return out, err
			}
			seen[n.kind] = objects
			out.Objects += len(objects)
		}
		missing, err := s.lacks(ctx, user.Key, n, objects)
		if err != nil {
			return out, err
		}
		out.Missing = append(out.Missing, missing...)
	}
	return out, nil
}

// objects lists what the user sees of a kind; a folder is the root folder alone.
func (s *session) objects(ctx context.Context, kind string) ([]mo.ManagedEntity, error) {
	root := s.client.ServiceContent.RootFolder
	if kind == kindFolder {
		return []mo.ManagedEntity{{ExtensibleManagedObject: mo.ExtensibleManagedObject{Self: root}, Name: "the root folder"}}, nil
	}
	all, err := view.NewManager(s.client.Client).CreateContainerView(ctx, root, []string{kind}, true)
	if err != nil {
		return nil, failed(api.CodeVCenter, err, "list what vCenter %s has of %s", s.name, kind)
	}
	defer func() { _ = all.Destroy(context.WithoutCancel(ctx)) }()
	var out []mo.ManagedEntity
	if kind == kindNetwork { // whose name is not that of other objects
		var networks []mo.Network
		err = all.Retrieve(ctx, []string{kind}, []string{"name"}, &networks)
		for _, n := range networks {
			out = append(out, entity(n.Self, n.Name))
		}
	} else {
		err = all.Retrieve(ctx, []string{kind}, []string{"name"}, &out)
	}
	if err != nil {
		return nil, failed(api.CodeVCenter, err, "list what vCenter %s has of %s", s.name, kind)
	}
	return out, nil
}

// lacks asks for the needs on the objects.
func (s *session) lacks(ctx context.Context, sessionID string, n needs, objects []mo.ManagedEntity) ([]api.MissingPrivilege, error) {
	names := map[types.ManagedObjectReference]string{}
	refs := make([]types.ManagedObjectReference, len(objects))
	for i, o := range objects {
		refs[i], names[o.Self] = o.Self, o.Name
	}
	found := map[string]*api.MissingPrivilege{}
	for page := range slices.Chunk(refs, privilegePage) {
		res, err := methods.HasPrivilegeOnEntities(ctx, s.client.Client, &types.HasPrivilegeOnEntities{
			This: *s.client.ServiceContent.AuthorizationManager, Entity: page, SessionId: sessionID, PrivId: n.privileges,
		})
		if err != nil {
			return nil, failed(api.CodeVCenter, err, "ask vCenter %s for the user's privileges", s.name)
		}
		for _, e := range res.Returnval {
			for _, p := range e.PrivAvailability {
				if p.IsGranted {
					continue
				}
				m := found[p.PrivId]
				if m == nil {
					m = &api.MissingPrivilege{Function: n.function, Privilege: p.PrivId, Kind: n.kind, Of: len(refs)}
					found[p.PrivId] = m
				}
				if m.Count++; len(m.On) < api.MaxMissing {
					m.On = append(m.On, names[e.Entity])
				}
			}
		}
	}
	var out []api.MissingPrivilege
	for _, id := range n.privileges {
		if m := found[id]; m != nil {
			slices.Sort(m.On)
			out = append(out, *m)
		}
	}
	return out, nil
}
