package machine

import (
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/ident"
	"drover/datapath/stream"
	"drover/workflows/api"
	"drover/workflows/fault"
)

const mib = 1 << 20

// disk is a disk of the test machine, as vCenter and its guest have it.
func disk(name string, size int64) api.VMDisk {
	return api.VMDisk{ID: ident.NewDiskID(testVM().Machine, name), BackingUUID: name, Label: "Hard disk " + name, Size: size}
}

// vmWith is the test VM with these disks.
func vmWith(disks ...api.VMDisk) api.VM {
	vm := testVM()
	vm.Disks = disks
	return vm
}

// diskWorld has a machine with one disk.
func diskWorld(t *testing.T) *world {
	w := newWorld(t)
	w.input.VM = vmWith(disk("d", mib))
	w.vm = &w.input.VM
	return w
}

// says has the agent report these disks, some time later.
func (w *world) says(disks ...api.AgentDisk) {
	w.then(func() {
		w.SignalWorkflow(api.SignalAgent, api.AgentReport{Machine: testVM().Machine, Instance: "B-1", Disks: disks})
	})
}

func seen(d api.VMDisk) api.AgentDisk {
	return api.AgentDisk{BackingUUID: d.BackingUUID, Path: "/dev/" + d.BackingUUID, Size: d.Size}
}

// vcenterHas changes what vCenter tells of the VM when it is asked.
func (w *world) vcenterHas(disks ...api.VMDisk) {
	w.then(func() { vm := vmWith(disks...); w.vm = &vm })
}

// discovers has discovery notice that vCenter has these disks.
func (w *world) discovers(disks ...api.VMDisk) {
	w.vcenterHas(disks...)
	w.then(func() { w.SignalWorkflow(api.SignalInventory, vmWith(disks...)) })
}

func (w *world) protects(resyncs int, disks ...api.VMDisk) {
	w.then(func() {
		w.t.Helper()
		require.Equal(w.t, disks, w.status().Protected)
		require.Equal(w.t, resyncs, w.status().Resyncs)
		require.Equal(w.t, disks, w.bases[len(w.bases)-1].Disks, "what was compared last")
	})
}

// problem expects one of these codes, and none of the other codes of disks.
func (w *world) problem(code string, health api.Health, words ...string) {
	w.then(func() {
		w.t.Helper()
		var found []string
		for _, p := range w.status().Problems {
			found = append(found, p.Code)
			if p.Code == code {
				require.Equal(w.t, health, p.Health)
				for _, word := range words {
					require.Contains(w.t, p.Cause+p.Action+p.Evidence, word)
				}
			}
		}
		if code == "" {
			require.Empty(w.t, found)
		} else {
			require.Equal(w.t, []string{code}, found)
		}
	})
}

// TestGrownDiskIsTakenByItself: agent and vCenter see it, whoever is first, and one resync
// takes it.
func TestGrownDiskIsTakenByItself(t *testing.T) {
	for name, agentFirst := range map[string]bool{"the agent first": true, "vCenter first": false} {
		t.Run(name, func(t *testing.T) {
			w := diskWorld(t)
			small, large := disk("d", mib), disk("d", 2*mib)
			w.says(seen(small))
			w.problem("", "")
			if agentFirst {
				w.vcenterHas(large) // which discovery has not looked at yet
			} else {
				w.discovers(large)
				w.problem(api.CodeDiskChanged, api.Warning, "2.0 MiB in vCenter, and the guest sees 1.0 MiB", "look at the disk's size again")
				w.protects(0, small)
				w.expect(api.StateProtected)
			}
			w.says(seen(large))
			w.protects(1, large)
			w.expect(api.StateProtected)
			w.problem("", "")
			w.says(seen(large), api.AgentDisk{Path: "/dev/sr0", Size: 5})
			w.protects(1, large)
			w.then(func() {
				moved := w.status().Transfers
				require.Equal(t, "resync: Hard disk d has grown from 1.0 MiB to 2.0 MiB", moved[len(moved)-1].Cause)
				require.True(t, w.bases[len(w.bases)-1].NewGeneration, "the recovery points from before stay what they are")
				require.Equal(t, large.Size, w.assigns[len(w.assigns)-1].Disks[0].Size)
				require.Nil(t, w.status().Refused)
			})
			w.play()
		})
	}
}

// TestGrownDiskThatVCenterDoesNotKnow is not believed: a guest can say anything. It is
// looked at again.
func TestGrownDiskThatVCenterDoesNotKnow(t *testing.T) {
	w := diskWorld(t)
	small, large := disk("d", mib), disk("d", 2*mib)
	w.says(seen(small))
	w.says(seen(disk("d", 1<<60)))
	w.problem(api.CodeDiskChanged, api.Warning, "1.0 EiB in the guest, and 1.0 MiB in vCenter")
	w.protects(0, small)
	w.vcenterHas(large)
	w.says(seen(large))
	w.protects(1, large)
	w.problem("", "")
	w.play()
}

// TestGrownDiskWhileVCenterIsAway waits for it.
func TestGrownDiskWhileVCenterIsAway(t *testing.T) {
	w := diskWorld(t)
	large := disk("d", 2*mib)
	w.then(func() { w.fails[api.ActVerifyVMReady] = fault.New(api.CodeInvalid, "no answer") })
	w.vcenterHas(large)
	w.says(seen(large))
	w.problem(api.CodeDiskChanged, api.Warning, "no answer")
	w.protects(0, disk("d", mib))
	for range 6 { // minutes
		w.then(func() {})
	}
	w.protects(1, large)
	w.problem("", "")
	w.play()
}

// TestNewDisk is shown, and taken when somebody orders it, or by a policy that says so.
func TestNewDisk(t *testing.T) {
	d, e := disk("d", mib), disk("e", 3*mib)
	t.Run("ask", func(t *testing.T) {
		w := diskWorld(t)
		w.says(seen(d))
		w.discovers(d, e)
		w.says(seen(d), seen(e))
		w.problem(api.CodeDiskNew, api.Warning, "Hard disk e (3.0 MiB) is new and not protected", "drover resync db-1 --exclude")
		w.expect(api.StateProtected)
		w.protects(0, d)
		// A disk that grows is taken alone.
		w.discovers(disk("d", 2*mib), e)
		w.says(seen(disk("d", 2*mib)), seen(e))
		w.protects(1, disk("d", 2*mib))
		w.problem(api.CodeDiskNew, api.Warning)
		good := w.ask(api.ActionResync, api.ActionRequest{})
		w.protects(2, disk("d", 2*mib), e)
		w.problem("", "")
		w.play()
		require.NoError(t, good.err)
	})
	t.Run("exclude", func(t *testing.T) {
		w := diskWorld(t)
		w.says(seen(d))
		w.discovers(d, e)
		w.says(seen(d), seen(e))
		wrong := w.ask(api.ActionResync, api.ActionRequest{Exclude: []string{"Hard disk 9"}})
		all := w.ask(api.ActionResync, api.ActionRequest{Exclude: []string{"d", "e"}})
		out := w.ask(api.ActionResync, api.ActionRequest{Exclude: []string{"Hard disk e"}})
		w.problem("", "")
		w.protects(0, d)
		w.then(func() { require.Equal(t, api.DiskExcluded, w.status().GuestDisks()[1].State) })
		in := w.ask(api.ActionResync, api.ActionRequest{Include: []string{"Hard disk e"}})
		w.protects(1, d, e)
		w.play()
		require.Equal(t, api.CodeInvalid, fault.Code(wrong.err))
		require.Equal(t, api.CodeInvalid, fault.Code(all.err))
		require.NoError(t, out.err)
		require.NoError(t, in.err)
	})
	t.Run("protect", func(t *testing.T) {
		w := diskWorld(t)
		w.input.Policy.NewDisks = api.NewDisksProtect
		w.says(seen(d))
		w.discovers(d, e)
		w.problem(api.CodeDiskNew, api.Warning, "the guest does not see it yet")
		w.says(seen(d), seen(e))
		w.protects(1, d, e)
		w.problem("", "")
		w.then(func() {
			moved := w.status().Transfers
			require.Equal(t, "resync: Hard disk e (3.0 MiB) was added", moved[len(moved)-1].Cause)
		})
		w.play()
	})
}

// TestMissingDisk is an error that nothing ends but the disk or a person: no resync that
// starts by itself gives it up.
func TestMissingDisk(t *testing.T) {
	w := diskWorld(t)
	d, e := disk("d", mib), disk("e", mib)
	w.input.VM = vmWith(d, e)
	w.input.Policy.Resync.Automatic = true
	w.says(seen(d), seen(e))
	w.problem("", "")
	gone := seen(e)
	gone.Gone = w.Now()
	w.says(seen(d), gone)
	w.problem(api.CodeDiskMissing, api.Critical, "Hard disk e is protected", "Attach it again")
	w.expect(api.StateProtected)
	w.says(seen(d), seen(e))
	w.problem("", "")
	w.protects(0, d, e)

	// It goes again, and the machine is marked for resync for another reason meanwhile.
	w.says(seen(d), gone)
	w.then(func() {
		b := stream.Broken{Code: api.CodeSessionLost, Cause: "no session for 5s"}
		require.NoError(t, w.CompleteActivity(w.watching, api.ReplicateResult{Broken: &b}, nil))
	})
	w.expect(api.StateResyncRequired)
	early := w.ask(api.ActionResync, api.ActionRequest{})
	w.expect(api.StateResyncRequired)
	w.discovers(d)
	w.then(func() {
		require.Len(t, w.status().Protected, 2, "it is not given up in silence")
		require.Zero(t, w.status().Resyncs)
		require.Nil(t, w.status().Refused, "nothing is tried in a loop")
	})
	good := w.ask(api.ActionResync, api.ActionRequest{})
	w.protects(1, d)
	w.problem("", "")
	w.play()
	require.Equal(t, api.CodeNotInState, fault.Code(early.err))
	require.ErrorContains(t, early.err, "Hard disk e is not in the guest")
	require.NoError(t, good.err)
}

// TestMissingDiskComesBack: the automatic resync that waited for it then starts by itself.
func TestMissingDiskComesBack(t *testing.T) {
	w := diskWorld(t)
	d := disk("d", mib)
	w.input.Policy.Resync.Automatic = true
	gone := seen(d)
	gone.Gone = w.Now()
	w.says(gone)
	w.then(func() {
		b := stream.Broken{Code: api.CodeSessionLost, Cause: "no session for 5s"}
		require.NoError(t, w.CompleteActivity(w.watching, api.ReplicateResult{Broken: &b}, nil))
	})
	w.then(func() {})
	w.expect(api.StateResyncRequired)
	w.says(seen(d))
	w.expect(api.StateProtected)
	w.protects(1, d)
	w.play()
}

// TestShrunkDisk: what was protected of it is not given up without a person.
func TestShrunkDisk(t *testing.T) {
	w := diskWorld(t)
	w.input.VM = vmWith(disk("d", 2*mib))
	w.says(seen(disk("d", 2*mib)))
	w.discovers(disk("d", mib))
	w.says(seen(disk("d", mib)))
	w.problem(api.CodeDiskChanged, api.Critical, "1.0 MiB in the guest, 2.0 MiB are protected")
	w.protects(0, disk("d", 2*mib))
	good := w.ask(api.ActionResync, api.ActionRequest{})
	w.protects(1, disk("d", mib))
	w.problem("", "")
	w.play()
	require.NoError(t, good.err)
}

// TestDisksOfAnotherCopy: what the agent of the target's copy, or of no copy that is
// assigned, says of its disks is no reason to change the protection.
func TestDisksOfAnotherCopy(t *testing.T) {
	w := diskWorld(t)
	w.then(func() {
		w.SignalWorkflow(api.SignalAgent, api.AgentReport{Machine: testVM().Machine, Instance: "cloud-1", Disks: []api.AgentDisk{seen(disk("d", 9*mib)), seen(disk("x", mib))}})
	})
	w.problem("", "")
	w.protects(0, disk("d", mib))
	w.play()
}

// TestGrowthGoesOnAfterContinueAsNew: what the agent said is carried on.
func TestGrowthGoesOnAfterContinueAsNew(t *testing.T) {
	w := diskWorld(t)
	large := disk("d", 2*mib)
	vm := vmWith(large)
	w.vm = &vm
	w.input.Carry = &api.MachineCarry{Version: 1, Joined: true, Assigned: 4, Status: api.MachineStatus{
		Machine: testVM().Machine, Name: "db-1", VM: w.input.VM, State: api.StateProtected, PolicySpec: w.input.Policy, TargetSpec: w.input.Target, Protected: w.input.VM.Disks,
		Assignment: api.Assignment{Epoch: 4, Server: "ps-1", Role: ident.RoleProcessServer, Instance: "b-1"},
		Agent:      &api.AgentReport{Machine: testVM().Machine, Instance: "b-1", Disks: []api.AgentDisk{seen(large)}}}}
	w.protects(1, large)
	w.play()
}
