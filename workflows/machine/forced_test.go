package machine

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/workflows/api"
)

// forcedTest is a protected machine whose agent told of boot one, and whose VM was reset
// at an hour; off: it was powered off and on.
func forcedTest(t *testing.T, told string, more func(w *world)) *world {
	w := diskWorld(t)
	w.input.VM.PoweredOn = true
	agent := func(boot string) {
		w.SignalWorkflow(api.SignalAgent, api.AgentReport{Machine: testVM().Machine, Instance: "B-1", BootID: boot, Disks: []api.AgentDisk{seen(disk("d", mib))}})
	}
	w.later(time.Minute, func() { agent("one") })
	w.later(time.Hour, func() {
		w.SignalWorkflow(api.SignalVMEvent, api.VMEvent{Machine: testVM().Machine, Kind: api.VMReset, At: w.Now(), Text: "VmResettingEvent"})
	})
	w.later(time.Minute, func() {
		s := w.status()
		require.Equal(t, api.StateProtected, s.State, "nothing is marked before the agent had its time")
		require.Equal(t, []string{api.CodeForcedShutdown}, codes(s))
		require.Equal(t, api.Warning, s.Health)
		if told != "" {
			agent(told)
		}
	})
	more(w)
	return w
}

// TestForcedStopIsTheAgentsMatter: an agent that tells of a boot compares by itself; the
// machine is not resynchronised.
func TestForcedStopIsTheAgentsMatter(t *testing.T) {
	w := forcedTest(t, "two", func(w *world) {
		w.later(time.Hour, func() {
			s := w.status()
			require.Equal(t, api.StateProtected, s.State)
			require.Empty(t, codes(s))
			require.Nil(t, s.Forced)
			// vCenter tells late of what was before that boot: that is settled.
			w.SignalWorkflow(api.SignalVMEvent, api.VMEvent{Machine: testVM().Machine, Kind: api.VMCrashed, At: s.Booted.Add(-time.Minute)})
		})
		w.later(time.Minute, func() { require.Empty(t, codes(w.status())) })
	})
	w.play()
	require.Zero(t, w.status().Resyncs)
}

// TestForcedStopWithoutABoot: vCenter's word counts when the agent says nothing.
func TestForcedStopWithoutABoot(t *testing.T) {
	w := forcedTest(t, "one", func(w *world) {
		w.later(bootPatience, func() {
			s := w.status()
			require.Equal(t, api.StateResyncRequired, s.State)
			require.Equal(t, []string{api.CodeForcedShutdown}, codes(s))
			require.Equal(t, api.Critical, s.Health)
			require.Contains(t, s.Problems[0].Cause, "reset")
		})
	})
	w.play()
}

// TestVMIsGone: shown until it is seen again.
func TestVMIsGone(t *testing.T) {
	w := diskWorld(t)
	w.later(time.Hour, func() {
		w.SignalWorkflow(api.SignalVMEvent, api.VMEvent{Machine: testVM().Machine, Kind: api.VMGone, Text: "VM db-1 is not in vCenter vc-1 any more"})
	})
	w.later(time.Minute, func() {
		s := w.status()
		require.Equal(t, []string{api.CodeVMGone}, codes(s))
		require.Equal(t, api.StateProtected, s.State)
		w.SignalWorkflow(api.SignalInventory, w.input.VM)
	})
	w.later(time.Minute, func() { require.Empty(t, codes(w.status())) })
	w.play()
}

// later does something some time after what was before it.
func (w *world) later(d time.Duration, f func()) {
	w.at += d - time.Minute
	w.then(f)
}

func codes(s api.MachineStatus) (out []string) {
	for _, p := range s.Problems {
		out = append(out, p.Code)
	}
	return out
}
