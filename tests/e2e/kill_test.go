package e2e

import (
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/ident"
	"drover/tests/lab"
	"drover/tests/replay"
	"drover/workflows/api"
)

const plan = `name: shop
groups:
  - name: database
    machines: [{name: db-1}]
  - name: application
    machines: [{name: app-1, location: {datastore: local-2, name: app-1-back}}]
`

// kill ends a process as a crash does, and starts it again.
func (w *world) kill(p *lab.Process) {
	w.t.Helper()
	w.t.Logf("kill -9 %s", p.Name)
	p.Kill()
	require.NoError(w.t, p.Start())
	if p == w.ConfigServer || p == w.ProcessServer || p == w.MasterTarget {
		require.NoError(w.t, w.WaitHealthy(w.ctx, p))
	}
}

func (w *world) killAgent(name string) {
	w.t.Helper()
	agent, err := w.Agent(name)
	require.NoError(w.t, err)
	w.kill(agent)
}

// points gives the numbers of a machine's recovery points.
func (w *world) points(name string) []ident.Seq {
	w.t.Helper()
	points, err := w.Points(w.ctx, name)
	require.NoError(w.t, err)
	var out []ident.Seq
	for _, p := range points {
		out = append(out, p.ID)
	}
	return out
}

// goesOn waits for new points and checks that the old ones are still there.
func (w *world) goesOn(name string, before []ident.Seq) {
	w.t.Helper()
	_, err := w.WaitPoints(w.ctx, name, 2, time.Now(), stateLimit)
	require.NoError(w.t, err)
	require.Subset(w.t, w.points(name), before, "points that were there before the crash")
	status, err := w.Status(w.ctx)
	require.NoError(w.t, err)
	require.Zero(w.t, status[name].Machine.Resyncs, "a crash costs no resync")
}

// run runs the plan and calls at once for the first machine's step that runs.
func (w *world) run(kind string, disturb func()) map[string]api.ActionResult {
	w.t.Helper()
	var once sync.Once
	r, err := w.RunPlan(w.ctx, "shop", kind, planLimit, func(s api.PlanStep) {
		if s.Kind == "machine" && s.State == api.StepRunning {
			once.Do(disturb)
		}
	}, func(string, api.PlanStep) error { return errors.New("the plan has no manual step") })
	require.NoError(w.t, err)
	return r.Results()
}

// booted checks that a machine found on its disks what the source had at the end.
func (w *world) booted(name, instance string, r api.ActionResult, since time.Time) {
	w.t.Helper()
	require.NotNil(w.t, r.Point, name)
	boot, err := w.WaitBoot(w.ctx, name, instance, since)
	require.NoError(w.t, err)
	require.Empty(w.t, boot.Problems, "e2fsck of %s", name)
	noted, err := w.NotedAt(name, r.Point.Position)
	require.NoError(w.t, err)
	require.True(w.t, noted.Final, "the source was frozen for good")
	require.Equal(w.t, noted.Disks, boot.Disks, "replica and source of %s at the end", name)
}

// TestEveryProcessIsKilled goes through the whole cycle and kills every process
// with SIGKILL in the middle of its work, some more than once.
func TestEveryProcessIsKilled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	names := []string{"db-1", "app-1"}

	w.protect(names...)
	_, err := w.WaitStatus(w.ctx, stateLimit, "the first copy is under way", func(s map[string]lab.MachineLine) (bool, error) {
		st := s["db-1"].Stream
		return st != nil && st.BaseDataBytes > 8<<20, nil
	})
	require.NoError(t, err)
	w.kill(w.ProcessServer)
	w.await(api.StateProtected, names...)
	w.drover("plan", "apply", "-f", w.write("plan.yaml", plan, 0o600))

	t.Log("delta replication")
	for i, disturb := range []func(){
		func() { w.kill(w.ProcessServer) },
		func() { w.kill(w.ConfigServer) },
		func() { w.killAgent("db-1"); w.killAgent("app-1") },
		func() { w.kill(w.Temporal) },
	} {
		_, err := w.WaitPoints(w.ctx, "db-1", i+1, time.Time{}, stateLimit)
		require.NoError(t, err)
		before := w.points("db-1")
		disturb()
		w.goesOn("db-1", before)
	}
	for _, name := range names {
		w.prove("seed", name)
	}

	t.Log("planned failover")
	begun := time.Now()
	results := w.run("planned", func() { w.kill(w.ConfigServer); w.kill(w.ProcessServer) })
	for _, name := range names {
		require.NotNil(t, results[name].Target, name)
		w.booted(name, results[name].Target.Instance, results[name], begun)
		w.prove("seed", name)
	}
	w.run("commit", func() {})

	t.Log("reprotect, failback, re-enable")
	w.run("reprotect", func() { w.kill(w.MasterTarget); w.killAgent("db-1") })
	w.await(api.StateProtectedReverse, names...)
	for _, name := range names {
		_, err := w.WaitPoints(w.ctx, name, 2, begun, stateLimit)
		require.NoError(t, err)
		w.prove("retention", name)
	}
	begun = time.Now()
	results = w.run("failback", func() { w.kill(w.MasterTarget); w.kill(w.ConfigServer) })
	status, err := w.Status(w.ctx)
	require.NoError(t, err)
	made := status["app-1"].Machine
	require.Equal(t, "app-1-back", made.VM.Name, "the plan has it made anew")
	require.NotEqual(t, w.vms["app-1"].BIOSUUID, made.VM.BIOSUUID)
	require.Equal(t, w.vms["app-1"].InstanceUUID, made.Former[0].InstanceUUID)
	for name, instance := range map[string]string{"db-1": w.vms["db-1"].BIOSUUID, "app-1": made.VM.BIOSUUID} {
		w.booted(name, instance, results[name], begun)
	}
	w.run("reenable", func() { w.kill(w.ProcessServer); w.kill(w.ConfigServer) })
	w.await(api.StateProtected, names...)
	for _, name := range names {
		_, err := w.WaitPoints(w.ctx, name, 2, time.Now(), stateLimit)
		require.NoError(t, err)
		t.Logf("%s: %d points proven", name, w.prove("seed", name).Points)
	}
	w.noSecrets()
	if dir := os.Getenv("DROVER_HISTORIES"); dir != "" {
		require.NoError(t, replay.Record(w.ctx, w.TemporalAddress, dir))
	}
}
