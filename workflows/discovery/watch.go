package discovery

import (
	"slices"
	"time"

	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
	"drover/workflows/call"
	"drover/workflows/fault"
)

// Bounds of watching.
const (
	watchFor  = 15 * time.Minute // then another one begins, with all there is
	watchMost = 96               // in one run, if nothing makes the history long before
	pauseMin  = 5 * time.Second  // after a watch that failed
	pauseMost = time.Minute
)

// watch has the vCenter watched, and passes over it when somebody asks.
func (d *discovery) watch(ctx workflow.Context) error {
	reports := workflow.GetSignalChannel(ctx, api.SignalWatched)
	workflow.Go(ctx, func(ctx workflow.Context) {
		for {
			var r api.WatchReport
			reports.Receive(ctx, &r)
			if r.From != d.VCenter.URL {
				continue // of a watch from before the vCenter was added again
			}
			d.busy++
			d.take(ctx, r)
			d.busy--
		}
	})
	workflow.Go(ctx, func(ctx workflow.Context) {
		for workflow.Await(ctx, func() bool { return d.passes < d.wanted }) == nil {
			d.pass(ctx)
		}
	})
	pause := pauseMin
	for n := 0; n < watchMost && !workflow.GetInfo(ctx).GetContinueAsNewSuggested(); n++ {
		err := call.Watch(ctx, api.WatchInput{VCenter: d.VCenter, For: api.Duration(watchFor), After: d.After})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			pause = pauseMin
			continue
		}
		if d.Watching {
			pause = pauseMin // it went well for a while
		}
		d.failed(ctx, err)
		if err := workflow.Sleep(ctx, pause); err != nil {
			return err
		}
		pause = min(2*pause, pauseMost)
	}
	idle := func() bool {
		return workflow.AllHandlersFinished(ctx) && d.busy == 0 && !d.passing && reports.Len() == 0
	}
	if err := workflow.Await(ctx, idle); err != nil {
		return err
	}
	return workflow.NewContinueAsNewError(ctx, api.WorkflowDiscovery, api.DiscoveryInput{VCenter: d.VCenter, Carry: &d.DiscoveryStatus})
}

// failed notes why nothing is seen; what is known stays.
func (d *discovery) failed(ctx workflow.Context, err error) {
	d.Watching = false
	if d.Error == "" {
		d.Since = workflow.Now(ctx)
	}
	d.Error = fault.Message(err)
	workflow.SetCurrentDetails(ctx, "vCenter "+d.VCenter.Name+" is not watched since "+d.Since.UTC().Format(time.RFC3339)+": "+d.Error)
}

// take notes what a watch saw, and tells the machines.
func (d *discovery) take(ctx workflow.Context, r api.WatchReport) {
	if d.passing {
		d.missed = append(d.missed, r) // the pass may have looked before
	}
	before := d.byInstance()
	r.VMs = tagged(r.VMs, before, r.TagsError)
	d.merge(r)
	d.TagsError = r.TagsError
	d.Error, d.Since, d.UUID, d.Watching, d.Changed, d.After = "", time.Time{}, r.UUID, true, workflow.Now(ctx), r.After
	if r.Full {
		d.LastPass = d.Changed
	}
	workflow.SetCurrentDetails(ctx, "vCenter "+d.VCenter.Name+" is watched"+noTags(r.TagsError))
	d.tell(ctx, before)
	d.tellGone(ctx, before)
	for _, e := range r.Events {
		d.signal(ctx, d.members(ctx), e.Machine.String(), api.SignalVMEvent, e)
	}
	d.vault = nil
}

// noTags is what a run's details say of tags that could not be read.
func noTags(tagsError string) string {
	if tagsError == "" {
		return ""
	}
	return ", but for tags: " + tagsError
}

// merge puts a report into the list, which stays in order.
func (d *discovery) merge(r api.WatchReport) {
	if r.Full {
		d.VMs = r.VMs
		return
	}
	for _, vm := range r.VMs {
		i := d.find(vm.InstanceUUID)
		if i < 0 {
			d.VMs = append(d.VMs, vm)
			continue
		}
		d.VMs[i] = vm
	}
	d.VMs = slices.DeleteFunc(d.VMs, func(vm api.VM) bool {
		return slices.Contains(r.Gone, vm.InstanceUUID) && !slices.ContainsFunc(r.VMs, func(n api.VM) bool { return n.InstanceUUID == vm.InstanceUUID })
	})
	api.SortVMs(d.VMs)
}

func (d *discovery) find(instance string) int {
	return slices.IndexFunc(d.VMs, func(vm api.VM) bool { return vm.InstanceUUID == instance })
}

func (d *discovery) byInstance() map[string]api.VM {
	out := map[string]api.VM{}
	for _, vm := range d.VMs {
		out[vm.InstanceUUID] = vm
	}
	return out
}

// tellGone tells the machines whose VM is not there any more.
func (d *discovery) tellGone(ctx workflow.Context, before map[string]api.VM) {
	now := d.byInstance()
	var gone []api.VM
	for _, vm := range sorted(before) {
		if _, there := now[vm.InstanceUUID]; !there {
			gone = append(gone, vm)
		}
	}
	for _, vm := range gone {
		d.signal(ctx, d.members(ctx), vm.Machine.String(), api.SignalVMEvent, api.VMEvent{
			Machine: vm.Machine, Instance: vm.InstanceUUID, Kind: api.VMGone, At: workflow.Now(ctx), Text: "VM " + vm.Name + " is not in vCenter " + d.VCenter.Name + " any more",
		})
	}
}

// sorted are the VMs in order.
//
//workflowcheck:ignore
func sorted(m map[string]api.VM) []api.VM {
	out := make([]api.VM, 0, len(m))
	for _, vm := range m {
		out = append(out, vm)
	}
	api.SortVMs(out)
	return out
}

// members are the machines of the vault, by id; none when it could not be asked. It is
// asked once for each report.
func (d *discovery) members(ctx workflow.Context) map[string]api.VaultMember {
	if d.vault != nil {
		return d.vault
	}
	d.vault = map[string]api.VaultMember{}
	vault, err := call.VaultStatus(ctx)
	if err != nil {
		workflow.GetLogger(ctx).Warn("machines are not told of changes in vCenter", "error", err)
	}
	for _, m := range vault.Machines {
		d.vault[m.Machine.String()] = m
	}
	return d.vault
}

// signal tells a machine, if it is protected. One that cannot be reached is told by the
// next change.
func (d *discovery) signal(ctx workflow.Context, members map[string]api.VaultMember, machine, name string, arg any) {
	m, member := members[machine]
	if !member {
		return
	}
	err := workflow.SignalExternalWorkflow(ctx, api.MachineWorkflowID(m.Machine), "", name, arg).Get(ctx, nil)
	if err != nil {
		workflow.GetLogger(ctx).Warn("machine is not told of a change in vCenter", "machine", machine, "error", err)
	}
}
