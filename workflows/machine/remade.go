package machine

import (
	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
	"drover/workflows/failback"
)

// remade takes the VM that a reprotect made for the machine's: its disks are those that
// are replicated to, under the ids that they had. What the machine had before is kept until
// it has failed back.
func (e *entity) remade(ctx workflow.Context, m failback.MadeVM) {
	e.s.Remade = &api.Remade{
		Run: m.Run, Made: api.VMRef{VCenter: m.VM.VCenter, InstanceUUID: m.VM.InstanceUUID},
		Former: e.s.VM, Protected: e.s.Protected, Excluded: e.in.Exclude, At: workflow.Now(ctx),
	}
	// Labels of the former VM may mean other disks in this one, which has none to exclude.
	e.s.VM, e.s.Protected, e.in.Exclude, e.s.Excluded = m.VM, m.Disks, nil, nil
	e.clear(ctx, api.CodeVMGone)
}

// settleRemade: the machine runs in the VM that was made, and the former one is not its any
// more, even if the failback is rolled back.
func (e *entity) settleRemade(ctx workflow.Context) {
	r := e.s.Remade
	if r == nil {
		return
	}
	e.s.Remade = nil
	e.s.Former = api.Remember(e.s.Former, api.FormerVM{
		VCenter: r.Former.VCenter, InstanceUUID: r.Former.InstanceUUID, Name: r.Former.Name, Until: workflow.Now(ctx),
	})
}

// unmade: the VM that was made is deleted, and the machine has its former one again.
func (e *entity) unmade() {
	if r := e.s.Remade; r != nil {
		e.s.VM, e.s.Protected, e.in.Exclude, e.s.Excluded, e.s.Remade = r.Former, r.Protected, r.Excluded, r.Excluded, nil
	}
}

// mine reports whether it is the machine's VM, and not one that it had before.
func (e *entity) mine(vcenterUUID, instance string) bool {
	return instance == e.s.VM.InstanceUUID && vcenterUUID == e.s.VM.VCenterUUID
}
