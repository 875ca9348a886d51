// Package discovery has the workflow that keeps a vCenter's inventory and tells
// the machines under protection what became of their VMs.
package discovery

import (
	"time"

	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
	"drover/workflows/call"
	"drover/workflows/fault"
)

// Bounds of a discovery.
const (
	every     = 5 * time.Minute // between two passes
	maxPasses = 200             // before it continues as new
)

type discovery struct {
	api.DiscoveryStatus
	passes  int  // in this run
	asked   int  // refreshes that wait for a pass
	passing bool // one is under way
}

// Workflow passes over the vCenter now and then, and whenever it is asked to.
func Workflow(ctx workflow.Context, in api.DiscoveryInput) error {
	d := &discovery{}
	if in.Carry != nil {
		d.DiscoveryStatus = *in.Carry
	}
	d.VCenter = in.VCenter
	if in.VCenter.Name == "" || in.VCenter.URL == "" {
		return fault.New(api.CodeInvalid, "discovery without a vCenter's name and URL")
	}
	if err := d.handlers(ctx); err != nil {
		return err
	}
	for d.passes < maxPasses || d.asked > 0 {
		d.pass(ctx)
		if _, err := workflow.AwaitWithTimeout(ctx, every, func() bool { return d.asked > 0 }); err != nil {
			return err // cancelled
		}
	}
	if err := workflow.Await(ctx, func() bool { return workflow.AllHandlersFinished(ctx) }); err != nil {
		return err
	}
	return workflow.NewContinueAsNewError(ctx, api.WorkflowDiscovery, api.DiscoveryInput{VCenter: d.VCenter, Carry: &d.DiscoveryStatus})
}

func (d *discovery) handlers(ctx workflow.Context) error {
	query := func() (api.DiscoveryStatus, error) { return d.DiscoveryStatus, nil }
	if err := workflow.SetQueryHandler(ctx, api.QueryStatus, query); err != nil {
		return err
	}
	return workflow.SetUpdateHandler(ctx, api.DiscoveryRefresh, d.refresh)
}

// refresh waits for a pass that was begun after it was asked for.
func (d *discovery) refresh(ctx workflow.Context) (api.DiscoveryStatus, error) {
	d.asked++
	defer func() { d.asked-- }()
	want := d.passes + 1
	if d.passing {
		want++
	}
	err := workflow.Await(ctx, func() bool { return d.passes >= want })
	return d.DiscoveryStatus, err
}

// pass reads the inventory. A vCenter that does not answer leaves what is known.
func (d *discovery) pass(ctx workflow.Context) {
	d.passing = true
	out, err := call.Inventory(ctx, d.VCenter)
	d.passing = false
	d.passes++
	d.Passes++
	if err != nil {
		d.Error = fault.Message(err)
		workflow.SetCurrentDetails(ctx, "vCenter "+d.VCenter.Name+": "+d.Error)
		return
	}
	before := map[string]api.VM{}
	for _, vm := range d.VMs {
		before[vm.InstanceUUID] = vm
	}
	d.Error, d.UUID, d.VMs, d.LastPass = "", out.UUID, out.VMs, workflow.Now(ctx)
	workflow.SetCurrentDetails(ctx, "vCenter "+d.VCenter.Name+" is up to date")
	d.tell(ctx, before)
}

// tell signals the machines whose VM changed. Which VMs are protected the vault
// knows; a machine that cannot be reached is told by the next change.
func (d *discovery) tell(ctx workflow.Context, before map[string]api.VM) {
	var changed []api.VM
	for _, vm := range d.VMs {
		if old, known := before[vm.InstanceUUID]; known && !same(old, vm) {
			changed = append(changed, vm)
		}
	}
	if len(changed) == 0 {
		return
	}
	vault, err := call.VaultStatus(ctx)
	if err != nil {
		workflow.GetLogger(ctx).Warn("machines are not told of changes in vCenter", "error", err)
		return
	}
	members := map[string]bool{}
	for _, m := range vault.Machines {
		members[m.Machine.String()] = true
	}
	for _, vm := range changed {
		if !members[vm.Machine.String()] {
			continue
		}
		err := workflow.SignalExternalWorkflow(ctx, api.MachineWorkflowID(vm.Machine), "", api.SignalInventory, vm).Get(ctx, nil)
		if err != nil {
			workflow.GetLogger(ctx).Warn("machine is not told of a change in vCenter", "machine", vm.Machine, "error", err)
		}
	}
}

// same reports whether two looks at a VM saw the same.
func same(a, b api.VM) bool {
	if len(a.Disks) != len(b.Disks) || len(a.NICs) != len(b.NICs) {
		return false
	}
	for i := range a.Disks {
		if a.Disks[i] != b.Disks[i] {
			return false
		}
	}
	for i := range a.NICs {
		if a.NICs[i] != b.NICs[i] {
			return false
		}
	}
	return a.Name == b.Name && a.PoweredOn == b.PoweredOn && a.CPUs == b.CPUs && a.MemoryMB == b.MemoryMB &&
		a.BIOSUUID == b.BIOSUUID && a.Firmware == b.Firmware && a.GuestID == b.GuestID
}
