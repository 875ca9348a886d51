// Package discovery has the workflow that keeps a vCenter's inventory and tells
// the machines under protection what became of their VMs. A long activity watches the
// vCenter and signals what changes.
package discovery

import (
	"slices"
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
	passes  int                        // in this run
	asked   int                        // refreshes that wait for a pass
	wanted  int                        // passes, until those who wait have theirs
	passing bool                       // one is under way
	watches bool                       // this run watches
	tags    bool                       // this run tells machines of tags
	busy    int                        // reports being taken
	missed  []api.WatchReport          // that came while a pass was under way
	vault   map[string]api.VaultMember // machines, while a report is taken
}

const (
	// changeWatch is since when vCenters are watched; runs from before look every few minutes.
	changeWatch = "watch"
	// changeTags is since when a VM has changed if its tags have.
	changeTags = "tags"
)

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
	if workflow.GetVersion(ctx, changeWatch, workflow.DefaultVersion, 1) == 1 {
		d.watches = true
		d.tags = workflow.GetVersion(ctx, changeTags, workflow.DefaultVersion, 1) == 1
		return d.watch(ctx)
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
	where := func() (api.VCenter, error) { return d.VCenter, nil }
	if err := workflow.SetQueryHandler(ctx, api.QueryVCenter, where); err != nil {
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
	d.wanted = max(d.wanted, want)
	err := workflow.Await(ctx, func() bool { return d.passes >= want })
	return d.DiscoveryStatus, err
}

// pass reads the inventory. A vCenter that does not answer leaves what is known.
func (d *discovery) pass(ctx workflow.Context) {
	d.passing = true
	out, err := call.Inventory(ctx, d.VCenter)
	d.passing = false
	missed := d.missed
	d.missed = nil
	d.passes++
	d.Passes++
	if err != nil {
		d.failed(ctx, err)
		return
	}
	before := d.byInstance()
	d.UUID, d.VMs, d.LastPass, d.TagsError = out.UUID, tagged(out.VMs, before, out.TagsError), workflow.Now(ctx), out.TagsError
	for _, r := range missed {
		d.merge(r)
	}
	d.Error, d.Since = "", time.Time{}
	workflow.SetCurrentDetails(ctx, "vCenter "+d.VCenter.Name+" is up to date"+noTags(out.TagsError))
	d.tell(ctx, before)
	d.vault = nil
}

// tell signals the machines whose VM changed, or was not there before. Which VMs are
// protected the vault knows.
func (d *discovery) tell(ctx workflow.Context, before map[string]api.VM) {
	for _, vm := range d.VMs {
		old, known := before[vm.InstanceUUID]
		if known && same(old, vm) && (!d.tags || slices.Equal(old.Tags, vm.Tags)) {
			continue
		}
		if !known && (len(before) == 0 || !d.watches) {
			continue // the first look: there is nothing to compare with
		}
		d.signal(ctx, d.members(ctx), vm.Machine.String(), api.SignalInventory, vm)
	}
}

// tagged gives VMs without tags those that they had before, if tags could not be read.
func tagged(vms []api.VM, before map[string]api.VM, tagsError string) []api.VM {
	if tagsError == "" {
		return vms
	}
	for i, vm := range vms {
		if len(vm.Tags) == 0 {
			vms[i].Tags = before[vm.InstanceUUID].Tags
		}
	}
	return vms
}

// same reports whether two looks at a VM saw the same but for its tags.
func same(a, b api.VM) bool {
	if !slices.Equal(a.Disks, b.Disks) || !slices.Equal(a.NICs, b.NICs) {
		return false
	}
	return a.Name == b.Name && a.PoweredOn == b.PoweredOn && a.CPUs == b.CPUs && a.MemoryMB == b.MemoryMB &&
		a.BIOSUUID == b.BIOSUUID && a.Firmware == b.Firmware && a.GuestID == b.GuestID && a.Host == b.Host && a.Folder == b.Folder
}
