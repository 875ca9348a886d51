package machine

import (
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/ident"
	"drover/workflows/api"
	"drover/workflows/fault"
)

func elsewhere() api.ActionRequest {
	return api.ActionRequest{Location: &api.Location{VCenter: "vc-2", Datastore: "ssd", Networks: map[string]string{"a": "b"}, Site: "two"}}
}

// away brings a machine with two disks, of which the first is excluded, to where it can be
// reprotected.
func away(t *testing.T) *world {
	w := newWorld(t)
	m := w.input.VM.Machine
	w.input.VM.Disks = []api.VMDisk{
		{ID: ident.NewDiskID(m, "swap"), BackingUUID: "swap", Label: "Hard disk 1", Size: 1 << 20},
		{ID: ident.NewDiskID(m, "d"), BackingUUID: "d", Label: "Hard disk 2", Size: 1 << 20},
	}
	w.input.Exclude = []string{"Hard disk 1"}
	w.ask(api.ActionFailover, api.ActionRequest{Planned: true})
	w.ask(api.ActionCommit, api.ActionRequest{})
	return w
}

// TestFailbackToAVMMadeAnew: the machine is the same, its VM another one: failback,
// re-enable and the next failover are of the new one, and what happens to the former one is
// nobody's business.
func TestFailbackToAVMMadeAnew(t *testing.T) {
	w := away(t)
	var shut, on []api.VMRef
	reg(w, api.ActShutdownVM, func(in api.ShutdownInput) api.ShutdownResult {
		shut = append(shut, in.VMRef)
		return api.ShutdownResult{WasOn: true}
	})
	reg(w, api.ActPowerOnVM, func(in api.VMRef) none { on = append(on, in); return none{} })
	made := madeVM(api.VM{Machine: testVM().Machine, Name: "db-1", Disks: testVM().Disks})
	w.vm = &made
	repro := w.ask(api.ActionReprotect, elsewhere())
	w.expect(api.StateProtectedReverse)
	w.then(func() {
		s := w.status()
		require.Equal(t, "i-2", s.VM.InstanceUUID)
		require.Equal(t, "new-0", s.Protected[0].BackingUUID)
		require.Equal(t, testVM().Disks[0].ID, s.Protected[0].ID, "the disk is the same")
		require.Empty(t, s.Excluded, "its first disk has the label of the one that was excluded")
		require.Equal(t, "i-1", s.Remade.Former.InstanceUUID)
		last := w.grants[len(w.grants)-1]
		require.True(t, last.Attached)
		require.Equal(t, s.Protected, last.Disks, "the master target writes to the new disks")
		require.Len(t, w.makes, 1)
		require.Equal(t, "mt-1", w.makes[0].MasterTarget)
		require.NotEmpty(t, w.makes[0].Run)
	})
	back := w.ask(api.ActionFailback, api.ActionRequest{})
	w.expect(api.StateFailedBack)
	w.then(func() {
		s := w.status()
		require.Nil(t, s.Remade)
		require.Equal(t, "i-1", s.Former[0].InstanceUUID)
		require.Equal(t, "vc-1", s.Former[0].VCenter)
		require.Equal(t, []api.VMRef{{VCenter: "vc-2", InstanceUUID: "i-2"}}, on)
		// The former VM is deleted, and the new one renamed.
		w.SignalWorkflow(api.SignalVMEvent, api.VMEvent{Machine: s.Machine, Instance: "i-1", Kind: api.VMGone, Text: "gone"})
		former, now := testVM(), s.VM
		former.Name, now.Name = "old", "new"
		w.SignalWorkflow(api.SignalInventory, former)
		w.SignalWorkflow(api.SignalInventory, now)
	})
	w.then(func() {
		require.Empty(t, w.status().Problems)
		require.Equal(t, "new", w.status().VM.Name)
		w.SignalWorkflow(api.SignalVMEvent, api.VMEvent{Machine: made.Machine, Instance: "i-2", Kind: api.VMGone, Text: "gone"})
	})
	w.then(func() {
		require.Equal(t, api.CodeVMGone, w.status().Problems[0].Code)
		w.SignalWorkflow(api.SignalInventory, w.status().VM)
	})
	re := w.ask(api.ActionReenable, api.ActionRequest{})
	w.expect(api.StateProtected)
	w.then(func() {
		last := w.assigns[len(w.assigns)-1]
		require.Equal(t, "b-2", last.Assignment.Instance, "the agent of the new VM")
		require.Equal(t, "new-0", last.Disks[0].BackingUUID)
	})
	resync := w.ask(api.ActionResync, api.ActionRequest{})
	w.then(func() { require.Len(t, w.status().Protected, 1); shut = nil })
	over := w.ask(api.ActionFailover, api.ActionRequest{})
	w.expect(api.StateFailedOver)
	w.then(func() { require.Equal(t, []api.VMRef{{VCenter: "vc-2", InstanceUUID: "i-2"}}, shut) })
	w.play()
	for _, r := range []*reply{repro, back, re, resync, over} {
		require.NoError(t, r.err)
	}
	require.Empty(t, w.unmakes)
	require.IsNonDecreasing(t, w.granted)
}

// TestRemadeVMIsDeletedWhenItIsUndone: by a step that fails, and by a roll-back; the machine
// has its former VM again.
func TestRemadeVMIsDeletedWhenItIsUndone(t *testing.T) {
	w := away(t)
	w.then(func() { w.fails[api.ActGrant] = fault.New(api.CodeInvalid, "the disks are not there") })
	failed := w.ask(api.ActionReprotect, elsewhere())
	w.expect(api.StateCommitted)
	w.then(func() {
		require.Equal(t, []string{api.ActRevoke, api.ActDetachDisks, api.ActUnassign, api.ActUnmakeVM}, w.since(api.ActRevoke))
		require.Equal(t, api.UnmakeVMInput{VCenter: "vc-2", Machine: w.input.VM.Machine, Run: w.makes[0].Run}, w.unmakes[0])
		require.Equal(t, w.input.VM, w.status().VM)
		require.Nil(t, w.status().Remade)
	})
	repro := w.ask(api.ActionReprotect, elsewhere())
	w.expect(api.StateProtectedReverse)
	back := w.ask(api.ActionRollBack, api.ActionRequest{})
	w.expect(api.StateCommitted)
	w.then(func() {
		require.Equal(t, []string{api.ActUnassign, api.ActRevoke, api.ActFence, api.ActDetachDisks, api.ActUnmakeVM}, w.since(api.ActUnassign))
		s := w.status()
		require.Equal(t, w.input.VM, s.VM)
		require.Equal(t, []string{"Hard disk 1"}, s.Excluded)
		require.Equal(t, "d", s.Protected[0].BackingUUID)
		require.Equal(t, w.makes[1].Run, w.unmakes[1].Run)
		require.NotEqual(t, w.makes[0].Run, w.makes[1].Run)
		w.fails[api.ActUnmakeVM] = fault.New(api.CodeVCenterDenied, "the user lacks VirtualMachine.Inventory.Delete")
	})
	// What cannot be deleted is told, and does not keep the machine.
	again := w.ask(api.ActionReprotect, elsewhere())
	left := w.ask(api.ActionRollBack, api.ActionRequest{})
	w.expect(api.StateCommitted)
	w.play()
	require.Equal(t, api.CodeInvalid, fault.Code(failed.err))
	for _, r := range []*reply{repro, back, again, left} {
		require.NoError(t, r.err)
	}
	require.Contains(t, left.result.Message, "delete it by hand")
}

// TestOriginalOfAReprotect: gone, it has to be said where; there, it is taken or not touched,
// as was asked; out of sight, it takes a reason.
func TestOriginalOfAReprotect(t *testing.T) {
	gone := fault.New(api.CodeNotFound, "no such VM")
	burns := fault.New(api.CodeVCenterDenied, "no way in")
	onlyIfGone, reason := elsewhere(), elsewhere()
	onlyIfGone.Location.OnlyIfGone, reason.Reason = true, "the site burns"
	wrong := elsewhere()
	wrong.Location.Datastore = ""
	for name, c := range map[string]struct {
		request api.ActionRequest
		down    error
		code    string
		made    bool
	}{
		"it is there":                     {request: api.ActionRequest{}},
		"gone":                            {request: api.ActionRequest{}, down: gone, code: api.CodeVMGone},
		"gone, and made elsewhere":        {request: elsewhere(), down: gone, made: true},
		"there, and made elsewhere":       {request: elsewhere(), made: true},
		"there, elsewhere only if gone":   {request: onlyIfGone},
		"gone, elsewhere only if gone":    {request: onlyIfGone, down: gone, made: true},
		"out of sight":                    {request: elsewhere(), down: burns, code: api.CodeSourceRunning},
		"out of sight, for a reason":      {request: reason, down: burns, made: true},
		"nowhere":                         {request: wrong, code: api.CodeInvalid},
		"out of sight, not elsewhere":     {request: api.ActionRequest{Reason: "the site burns"}, down: burns, code: api.CodeSourceRunning},
		"out of sight, elsewhere if gone": {request: onlyIfGone, down: burns, code: api.CodeSourceRunning},
	} {
		w := away(t)
		w.then(func() { w.fails[api.ActShutdownVM] = c.down })
		repro := w.ask(api.ActionReprotect, c.request)
		w.then(func() {
			s := w.status()
			require.Equal(t, c.made, len(w.makes) == 1, name)
			require.Equal(t, c.made, s.Remade != nil, name)
			require.Empty(t, w.unmakes, name)
			if c.code == "" {
				require.Equal(t, api.StateProtectedReverse, s.State, name)
			} else {
				require.Equal(t, api.StateCommitted, s.State, name)
			}
		})
		w.play()
		require.Equal(t, c.code, fault.Code(repro.err), "%s: %v", name, repro.err)
		if c.code == api.CodeVMGone {
			require.ErrorContains(t, repro.err, "drover reprotect db-1 --datastore NAME")
		}
		if c.request.Reason != "" && c.made {
			require.Contains(t, repro.result.Message, "make sure that it stays off (reason given: the site burns)")
		}
	}
}
