package configserver

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/api/serviceerror"

	"drover/agent/controlapi"
	"drover/datapath/ident"
	"drover/worker/registry"
	"drover/workflows/api"
)

// entities takes signals in place of Temporal.
type entities struct {
	err  error
	told []api.AgentReport
}

func (e *entities) SignalWorkflow(_ context.Context, workflow, _, signal string, arg any) error {
	r := arg.(api.AgentReport)
	if e.err == nil && workflow == api.MachineWorkflowID(r.Machine) && signal == api.SignalAgent {
		e.told = append(e.told, r)
	}
	return e.err
}

// TestReporter: an entity is told what its agent reports once for each change, not more
// often than every minute, and again later when it was not there.
func TestReporter(t *testing.T) {
	reg, err := registry.Open(t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, reg.Close()) })
	machine := ident.NewMachineID("v", "db-1")
	peer := ident.Peer{Role: ident.RoleAgent, Name: machine.String()}
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	require.NoError(t, reg.Enrolled(registry.Enrolment{Peer: peer, Serial: "1", Instance: "i-1", Expires: now.Add(time.Hour)}))
	require.NoError(t, reg.Enrolled(registry.Enrolment{Peer: ident.Peer{Role: ident.RoleProcessServer, Name: "ps-1"}, Serial: "2", Expires: now.Add(time.Hour)}))
	in := &controlapi.Inventory{Hostname: "db", Tracker: "ebpf", Disks: []controlapi.InventoryDisk{{Path: "/dev/sda", Size: 10, Protected: true,
		Parts: []controlapi.InventoryPart{{Name: "sda1", Kind: "partition", Mounts: []string{"/"}}}}},
		Preflight: []controlapi.Finding{{Check: "fstab", Level: controlapi.LevelFail, What: "x", Advice: "y"}}}
	hear := func(instance string, in *controlapi.Inventory) {
		require.NoError(t, reg.Heard(peer, controlapi.Heartbeat{Instance: instance, Version: "1", State: "streaming", Inventory: in}, now))
	}
	to := &entities{}
	r := &reporter{reports: reports{reg}, to: to, log: slog.New(slog.DiscardHandler), told: map[ident.MachineID]told{}}
	look := func(after time.Duration) int {
		t.Helper()
		now = now.Add(after)
		before := len(to.told)
		r.look(t.Context(), now)
		return len(to.told) - before
	}
	require.Zero(t, look(0), "no agent was heard of")

	hear("i-1", in)
	to.err = serviceerror.NewNotFound("not protected yet")
	require.Zero(t, look(0))
	to.err = nil
	require.Zero(t, look(reportEvery-time.Second), "not again at once")
	require.Equal(t, 1, look(time.Second))
	got := to.told[0]
	require.Equal(t, api.AgentReport{Machine: machine, Instance: "i-1", Version: "1", LastSeen: got.LastSeen, State: "streaming", Hostname: "db", Tracker: "ebpf",
		Disks:     []api.AgentDisk{{Path: "/dev/sda", Size: 10, Protected: true, Parts: []api.AgentPart{{Name: "sda1", Kind: "partition", Mounts: []string{"/"}}}}},
		Preflight: []api.Finding{{Check: "fstab", Level: api.LevelFail, What: "x", Advice: "y"}}}, got)

	hear("i-1", nil) // it is still there: nothing new
	require.Zero(t, look(2*reportEvery))
	grown := *in
	grown.Disks = []controlapi.InventoryDisk{{Path: "/dev/sda", Size: 20, Protected: true}}
	hear("i-1", &grown)
	to.err = errors.New("Temporal is away")
	require.Zero(t, look(0))
	to.err = nil
	require.Equal(t, 1, look(reportEvery))
	require.Equal(t, int64(20), to.told[1].Disks[0].Size)

	// Only the copy counts that is assigned.
	require.NoError(t, reg.SetAssignment(controlapi.Assignment{Action: controlapi.ActionReplicate, Machine: machine, Epoch: 1, Instance: "CLOUD"}))
	hear("i-1", in)
	require.Zero(t, look(reportEvery))
	hear("cloud", in)
	require.Equal(t, 1, look(0))
	require.Equal(t, "cloud", to.told[2].Instance)

	// One that says something else every minute is told of with patience.
	at, before := now, len(to.told)
	for i := range 24 * 60 {
		grown.Disks[0].Size = int64(30 + i)
		hear("cloud", &grown)
		look(time.Minute)
	}
	require.LessOrEqual(t, len(to.told)-before, reportBurst+int(now.Sub(at)/reportSlow)+1)
	require.GreaterOrEqual(t, len(to.told)-before, int(now.Sub(at)/reportSlow))

	require.NoError(t, reg.Revoke(peer))
	require.Zero(t, look(2*reportEvery))
	require.Empty(t, r.told, "what was revoked is forgotten")
	all, err := reports{reg}.of(machine)
	require.NoError(t, err)
	require.Empty(t, all)
}
