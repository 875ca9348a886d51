package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

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

func (p *power) on(ctx context.Context) (map[string]bool, error) {
	all, err := view.NewManager(p.client.Client).CreateContainerView(ctx, p.client.ServiceContent.RootFolder, []string{"VirtualMachine"}, true)
	if err != nil {
		return nil, err
	}
	defer func() { _ = all.Destroy(context.WithoutCancel(ctx)) }()
	var vms []mo.VirtualMachine
	if err := all.Retrieve(ctx, []string{"VirtualMachine"}, []string{"config.instanceUuid", "runtime.powerState"}, &vms); err != nil {
		return nil, err
	}
	on := map[string]bool{}
	for _, vm := range vms {
		if vm.Config != nil && vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn {
			on[vm.Config.InstanceUuid] = true
		}
	}
	return on, nil
}
