package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"drover/datapath/ident"
	"drover/tests/vsim"
)

// VCenter is the lab's vCenter as the lab itself sees it; Drover finds it out for
// itself.
type VCenter struct{ vsim.Info }

// VM gives a VM by its name.
func (v VCenter) VM(name string) (vsim.VMInfo, error) {
	for _, vm := range v.VMs {
		if vm.Name == name {
			return vm, nil
		}
	}
	return vsim.VMInfo{}, fmt.Errorf("the lab's vCenter has no VM %s", name)
}

// loadVCenter waits until the vCenter is up and reads what is in it.
func (l *Lab) loadVCenter(ctx context.Context) error {
	path := l.Path("vcenter", "vsim.json")
	var content []byte
	err := l.waitFor(ctx, l.VSim, "write "+path, func() (ok bool) {
		b, err := os.ReadFile(path)
		content = b
		return err == nil
	})
	if err != nil {
		return err
	}
	return json.Unmarshal(content, &l.VCenter.Info)
}

// AddVCenter tells Drover about the vCenter.
func (l *Lab) AddVCenter(ctx context.Context) error {
	_, err := l.Drover(ctx, l.AddVCenterArgs()...)
	return err
}

// AddVCenterArgs are the arguments with which an operator adds the vCenter.
func (l *Lab) AddVCenterArgs() []string {
	return []string{"vcenter", "add", VCenterName, "--url", l.VCenter.URL, "--thumbprint", l.VCenter.Thumbprint, "--credentials", "vcenter"}
}

// Rename gives a VM another name in vCenter, as somebody there would.
func (l *Lab) Rename(ctx context.Context, from, to string) error {
	p, err := newPower(ctx, l.VCenter.URL)
	if err != nil {
		return err
	}
	defer func() { _ = p.client.Logout(context.WithoutCancel(ctx)) }()
	vm, err := find.NewFinder(p.client.Client).VirtualMachine(ctx, "/DC0/vm/"+from)
	if err != nil {
		return err
	}
	task, err := vm.Rename(ctx, to)
	if err != nil {
		return err
	}
	return task.Wait(ctx)
}

// power tells which VMs (by instance uuid) are powered on.
type power struct{ client *govmomi.Client }

func newPower(ctx context.Context, address string) (*power, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	u.User = url.UserPassword("drover", VCenterPassword)
	// The lab's own vCenter, on loopback.
	client, err := govmomi.NewClient(ctx, u, true)
	return &power{client}, err
}

// switched is a VM that is on.
type switched struct {
	bios    string
	machine string // whose it is, for one that Drover made
	disks   []bootDisk
}

// on gives the VMs that are on, by instance uuid; dir is the vCenter's.
func (p *power) on(ctx context.Context, dir string) (map[string]switched, error) {
	all, err := view.NewManager(p.client.Client).CreateContainerView(ctx, p.client.ServiceContent.RootFolder, []string{"VirtualMachine"}, true)
	if err != nil {
		return nil, err
	}
	defer func() { _ = all.Destroy(context.WithoutCancel(ctx)) }()
	var vms []mo.VirtualMachine
	if err := all.Retrieve(ctx, []string{"VirtualMachine"}, []string{"config", "runtime.powerState"}, &vms); err != nil {
		return nil, err
	}
	on := map[string]switched{}
	for _, vm := range vms {
		if vm.Config != nil && vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn {
			on[vm.Config.InstanceUuid] = made(dir, vm.Config)
		}
	}
	return on, nil
}

// made is what a VM that Drover made says of itself; nothing for others.
func made(dir string, c *types.VirtualMachineConfigInfo) switched {
	out, ids := switched{bios: c.Uuid}, map[string]string{}
	for _, o := range c.ExtraConfig {
		v := o.GetOptionValue()
		text, _ := v.Value.(string)
		if v.Key == "drover.machine" {
			out.machine, _, _ = strings.Cut(text, " ")
		}
		if backing, ok := strings.CutPrefix(v.Key, "drover.disk."); ok {
			ids[backing] = text
		}
	}
	for _, d := range object.VirtualDeviceList(c.Hardware.Device).SelectByType((*types.VirtualDisk)(nil)) {
		b, ok := d.GetVirtualDevice().Backing.(*types.VirtualDiskFlatVer2BackingInfo)
		if !ok {
			continue
		}
		if id, err := ident.ParseDiskID(ids[b.Uuid]); err == nil {
			out.disks = append(out.disks, bootDisk{id, b.Uuid, vsim.FlatFile(dir, b.FileName)})
		}
	}
	return out
}
