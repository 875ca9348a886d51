package machine

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
	"drover/workflows/call"
	"drover/workflows/fault"
)

// diskLook is between two looks in vCenter for what the guest has and vCenter had not.
const diskLook = 5 * time.Minute

// reported takes what the machine's agent says of itself and its guest.
func (e *entity) reported(ctx workflow.Context, r api.AgentReport) {
	if r.Machine != e.s.Machine {
		return
	}
	r.State, r.Detail = "", "" // of a moment that is over; the stream says what goes on
	before := e.s.Agent
	e.s.Agent, e.disksNews = &r, true
	e.judgeVersion(ctx, r)
	e.booted(ctx, before, r)
	e.judgeDisks(ctx)
}

// sourceReports reports whether what the agent says of its disks counts: it runs on the
// source, and the source is what replicates.
func (e *entity) sourceReports() bool {
	return e.s.Agent != nil && !e.reverse() && strings.EqualFold(e.s.Agent.Instance, e.s.Assignment.Instance)
}

// diskFinding is what is wrong with a disk of the machine.
type diskFinding struct {
	code, what, action string
	health             api.Health
}

// diskCodes are the problems of disks, in the order in which they are entered.
var diskCodes = []string{api.CodeDiskMissing, api.CodeDiskNew, api.CodeDiskChanged}

// judgeDisks says what is wrong with the machine's disks, and has those taken that the
// protection is to have.
func (e *entity) judgeDisks(ctx workflow.Context) {
	if e.s.Agent == nil {
		return
	}
	found := map[string][]diskFinding{}
	switch e.s.State {
	case api.StateProtected, api.StateResyncRequired, api.StatePaused:
		if e.sourceReports() {
			for _, d := range e.s.GuestDisks() {
				if f := e.findDisk(d); f.code != "" {
					found[f.code] = append(found[f.code], f)
				}
			}
		}
	}
	for _, code := range diskCodes {
		if code == api.CodeDiskChanged && e.s.State != api.StateProtected {
			continue // it may be why the machine is marked for resync
		}
		e.enterDisks(ctx, code, found[code])
	}
	e.stirred = true // what kept a resync from being started may be over
	if !e.taking && e.s.State == api.StateProtected && e.changesWanted() {
		e.taking = true
		workflow.Go(ctx, e.takeDisks)
	}
}

// enterDisks enters what was found as one problem, or takes it away.
func (e *entity) enterDisks(ctx workflow.Context, code string, found []diskFinding) {
	if len(found) == 0 {
		e.clear(ctx, code)
		return
	}
	p := api.Problem{Code: code, Component: "disks", Action: found[0].action, Health: found[0].health}
	what := make([]string, len(found))
	for i, f := range found {
		what[i] = f.what
		if f.health == api.Critical {
			p.Health, p.Action = f.health, f.action
		}
	}
	p.Cause, p.Evidence = strings.Join(what, "; "), e.vcenterError
	if p = p.Complete(); !slices.Contains(e.s.Problems, e.sinceBefore(p)) {
		e.raise(ctx, p)
	}
}

// sinceBefore gives the problem as it stands in the list if nothing about it is new.
func (e *entity) sinceBefore(p api.Problem) api.Problem {
	p.Evidence, p.Action = e.named(p.Evidence), e.named(p.Action)
	for _, q := range e.s.Problems {
		if q.Code == p.Code {
			p.Since, p.Failover = q.Since, q.Failover
		}
	}
	return p
}

func (e *entity) findDisk(d api.GuestDisk) diskFinding {
	vm, known := e.vmDisk(d)
	switch {
	case d.State == api.DiskMissing:
		return diskFinding{code: api.CodeDiskMissing, health: api.Critical, what: d.Label + " is protected, and is not in the guest any more",
			action: "Attach it again: replication then goes on by itself. If it is gone for good, detach it in vCenter and resynchronise (action resync); older recovery points keep it."}
	case d.State == api.DiskNew && d.Unseen && e.s.PolicySpec.NewDisks == api.NewDisksProtect:
		return diskFinding{code: api.CodeDiskNew, health: api.Warning, what: fmt.Sprintf("%s (%s) is new, and the guest does not see it yet", d.Label, api.Size(d.Size)),
			action: "Have the guest look for new disks; it is then protected by itself."}
	case d.State == api.DiskNew && e.s.PolicySpec.NewDisks != api.NewDisksProtect:
		return diskFinding{code: api.CodeDiskNew, health: api.Warning, what: fmt.Sprintf("%s (%s) is new and not protected", d.Label, api.Size(d.Size)),
			action: fmt.Sprintf("drover resync %s protects it; drover resync %s --exclude %q says that it shall not be.", e.s.Name, e.s.Name, d.Label)}
	case d.State == api.DiskShrunk:
		return diskFinding{code: api.CodeDiskChanged, health: api.Critical, what: fmt.Sprintf("%s has %s in the guest, %s are protected", d.Label, api.Size(d.Size), api.Size(d.ProtectedSize)),
			action: "Look whether it is the right disk, then resynchronise (action resync). The recovery points that exist stay usable."}
	case d.State == api.DiskGrown && known && vm.Size <= d.ProtectedSize:
		return diskFinding{code: api.CodeDiskChanged, health: api.Warning, what: fmt.Sprintf("%s has %s in the guest, and %s in vCenter", d.Label, api.Size(d.Size), api.Size(vm.Size)),
			action: "Look which is right. vCenter is asked again every few minutes, and the larger disk then taken by itself."}
	case d.State == api.DiskGrown:
		return diskFinding{code: api.CodeDiskChanged, health: api.Warning, what: hasGrown(d),
			action: "Nothing: a resync takes it by itself. The recovery points that exist stay usable."}
	case d.State == api.DiskProtected && known && !d.Unseen && vm.Size > d.ProtectedSize:
		return diskFinding{code: api.CodeDiskChanged, health: api.Warning, what: fmt.Sprintf("%s has %s in vCenter, and the guest sees %s", d.Label, api.Size(vm.Size), api.Size(d.Size)),
			action: "Have the guest look at the disk's size again; what it gains is then taken by itself."}
	}
	return diskFinding{}
}

func hasGrown(d api.GuestDisk) string {
	return fmt.Sprintf("%s has grown from %s to %s", d.Label, api.Size(d.ProtectedSize), api.Size(d.Size))
}

// vmDisk finds a disk as vCenter has it.
func (e *entity) vmDisk(d api.GuestDisk) (api.VMDisk, bool) {
	i := slices.IndexFunc(e.s.VM.Disks, func(v api.VMDisk) bool { return v.ID == d.ID })
	if i < 0 {
		return api.VMDisk{}, false
	}
	return e.s.VM.Disks[i], true
}

// changesWanted reports whether the guest has what the protection is to have, whatever
// vCenter says.
func (e *entity) changesWanted() bool {
	return e.sourceReports() && slices.ContainsFunc(e.s.GuestDisks(), e.wantsDisk)
}

func (e *entity) wantsDisk(d api.GuestDisk) bool {
	return d.State == api.DiskGrown || d.State == api.DiskNew && !d.Unseen && d.Size > 0 && e.s.PolicySpec.NewDisks == api.NewDisksProtect
}

// diskChanges gives the disks of which there is more to protect, as guest and vCenter
// both have them, with a word about each. vCenter's size bounds what a guest can claim.
func (e *entity) diskChanges() (disks []api.VMDisk, what []string) {
	for _, d := range e.s.GuestDisks() {
		vm, known := e.vmDisk(d)
		vm.Size = min(vm.Size, d.Size)
		if !e.wantsDisk(d) || !known || vm.Size <= d.ProtectedSize {
			continue
		}
		word := hasGrown(d)
		if d.State == api.DiskNew {
			word = fmt.Sprintf("%s (%s) was added", d.Label, api.Size(vm.Size))
		}
		disks, what = append(disks, vm), append(what, word)
	}
	return disks, what
}

// takeDisks has a resync take what grew or came, as soon as vCenter agrees.
func (e *entity) takeDisks(ctx workflow.Context) {
	defer func() { e.taking = false }()
	for e.s.State == api.StateProtected && e.changesWanted() && e.possible(api.ActionResync) == nil {
		e.disksNews = false
		vm, err := call.VerifyVMReady(ctx, api.VMRef{VCenter: e.s.VM.VCenter, InstanceUUID: e.s.VM.InstanceUUID})
		if ctx.Err() != nil {
			return
		}
		e.vcenterError = ""
		if err != nil {
			e.vcenterError = "vCenter could not be asked: " + fault.Message(err)
		} else if vm.Machine == e.s.Machine {
			vm.Tags = e.s.VM.Tags // which discovery alone tells
			e.s.VM = vm
		}
		if e.s.State != api.StateProtected || e.possible(api.ActionResync) != nil {
			return // whatever goes on looks again when it ends
		}
		if _, what := e.diskChanges(); len(what) > 0 {
			e.signalled(ctx, api.ActionResync, api.ActionRequest{By: "drover", Reason: strings.Join(what, "; "), Changed: true})
			return
		}
		e.judgeDisks(ctx)
		if _, err := workflow.AwaitWithTimeout(ctx, diskLook, func() bool { return e.disksNews }); err != nil {
			return
		}
	}
}

// disksFor are the disks that a resync is to protect. One that nobody asked for takes
// what there is more of, and gives nothing up.
func (e *entity) disksFor(r api.ActionRequest) []api.VMDisk {
	all := protected(e.s.VM, e.excludedBy(r))
	if !e.sourceReports() {
		return all
	}
	if r.Changed || r.OnlyIfRequired {
		return e.keptWithChanges()
	}
	for _, d := range e.s.GuestDisks() { // what the guest does not see yet comes later
		i := slices.IndexFunc(all, func(v api.VMDisk) bool { return v.ID == d.ID })
		switch {
		case i >= 0 && d.State == api.DiskNew && d.Unseen && !e.s.Agent.Truncated:
			all = slices.Delete(all, i, i+1)
		case i >= 0 && d.Size > 0 && !d.Unseen && d.Gone.IsZero():
			all[i].Size = min(all[i].Size, d.Size)
		}
	}
	return all
}

func (e *entity) keptWithChanges() []api.VMDisk {
	out := slices.Clone(e.s.Protected)
	changed, _ := e.diskChanges()
	for _, d := range changed {
		i := slices.IndexFunc(out, func(p api.VMDisk) bool { return p.ID == d.ID })
		if i < 0 {
			out = append(out, d)
			continue
		}
		out[i] = d
	}
	return out
}

// excludedBy are the disks that are not protected once the request is carried out.
func (e *entity) excludedBy(r api.ActionRequest) []string {
	out := slices.DeleteFunc(slices.Clone(e.in.Exclude), func(x string) bool { return slices.Contains(r.Include, x) })
	for _, x := range r.Exclude {
		if !slices.Contains(out, x) {
			out = append(out, x)
		}
	}
	return out
}

// checkResync refuses a resync that would wait for disks that are not there, or that
// names disks that the machine does not have.
func (e *entity) checkResync(r api.ActionRequest) error {
	if (len(r.Exclude) > 0 || len(r.Include) > 0) && e.reverse() {
		return fault.New(api.CodeInvalid, "resync of %s: disks are excluded or included while the source replicates, not from the target back", e.s.Name)
	}
	for _, x := range slices.Concat(r.Exclude, r.Include) {
		known := func(d api.VMDisk) bool { return x == d.Label || x == d.BackingUUID }
		if !slices.ContainsFunc(e.s.VM.Disks, known) && !slices.ContainsFunc(e.s.Protected, known) && !slices.Contains(e.in.Exclude, x) {
			return fault.New(api.CodeInvalid, "resync of %s: it has no disk %q; name it by its label in vCenter or its backing uuid", e.s.Name, x)
		}
	}
	disks := e.disksFor(r)
	if !e.reverse() && len(disks) == 0 {
		return fault.New(api.CodeInvalid, "resync of %s: no disks would be left to protect", e.s.Name)
	}
	if d := e.missingOf(disks); d != nil {
		return fault.New(api.CodeNotInState, "resync of %s: %s is not in the guest; attach it, or detach it in vCenter and run drover discover, or exclude it", e.s.Name, d.Label)
	}
	return nil
}

// missingOf gives the first of the disks that the guest does not have; nil when it has
// all, or nobody knows.
func (e *entity) missingOf(disks []api.VMDisk) *api.VMDisk {
	if !e.sourceReports() {
		return nil
	}
	for _, g := range e.s.GuestDisks() {
		i := slices.IndexFunc(disks, func(d api.VMDisk) bool { return d.ID == g.ID })
		if i >= 0 && g.State == api.DiskMissing {
			return &disks[i]
		}
	}
	return nil
}
