package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/activities/target/local"
	"drover/datapath/ident"
	"drover/datapath/recover"
	"drover/datapath/stream"
	"drover/tests/lab"
	"drover/tests/lab/guest"
	"drover/workflows/api"
)

// act runs a verb on one machine and waits for its end.
func (w *world) act(args ...string) api.ActionResult {
	w.t.Helper()
	var out api.ActionResult
	require.NoError(w.t, w.DroverJSON(w.ctx, &out, args...))
	return out
}

// TestVerbs goes through what an operator does to single machines.
func TestVerbs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.protect("app-1", "db-1")
	w.await(api.StateProtected, "app-1", "db-1")
	w.drover("plan", "apply", "-f", w.write("plan.yaml", plan, 0o600))

	t.Log("pause, resume, another policy")
	w.act("pause", "app-1")
	w.await(api.StatePaused, "app-1")
	paused := w.points("app-1")
	w.act("resume", "app-1")
	w.await(api.StateProtected, "app-1")
	w.goesOn("app-1", paused)
	w.write("silver.yaml", "name: silver\ncutInterval: 10s\nrpoThreshold: 2m\n", 0o600)
	w.drover("policy", "apply", "-f", w.Path("silver.yaml"))
	w.act("set-policy", "app-1", "silver")
	require.Equal(t, "silver", w.await(api.StateProtected, "app-1")["app-1"].Machine.Policy)

	w.changesInVCenter("app-1")

	t.Log("test failover of one machine, and clean-up")
	begun := time.Now()
	r := w.act("test-failover", "app-1")
	require.NotNil(t, r.Target)
	boot, err := w.WaitBoot(w.ctx, "app-1", r.Target.Instance, begun)
	require.NoError(t, err)
	require.True(t, boot.Test)
	require.Empty(t, boot.Problems)
	noted, err := w.NotedAt("app-1", r.Point.Position)
	require.NoError(t, err)
	require.Equal(t, noted.Disks, boot.Disks)
	require.Contains(t, w.refused(3, "test-failover", "app-1"), api.CodeNotInState, "one test at a time")
	w.act("cleanup", "app-1")
	machines, err := local.List(w.Path("target"))
	require.NoError(t, err)
	require.Empty(t, machines)

	w.compares("app-1")
	t.Log("Temporal is away: replication goes on")
	before, err := w.ReplicaState(w.ctx, "seed", w.vms["db-1"].Machine)
	require.NoError(t, err)
	w.Temporal.Kill()
	require.Eventually(t, func() bool {
		now, err := w.ReplicaState(w.ctx, "seed", w.vms["db-1"].Machine)
		return err == nil && now.Position.Seq >= before.Position.Seq+2
	}, stateLimit, 100*time.Millisecond)
	require.NotEmpty(t, w.refused(5, "status"))
	require.NoError(t, w.Temporal.Start())
	w.await(api.StateProtected, "app-1", "db-1")

	t.Log("no longer protected")
	w.act("unprotect", "app-1", "--yes-name", "app-1")
	status, err := w.Status(w.ctx)
	require.NoError(t, err)
	require.NotContains(t, status, "app-1")
	_, err = w.ReplicaState(w.ctx, "seed", w.vms["app-1"].Machine)
	require.Error(t, err, "its replica is deleted")
	w.prove("seed", "db-1")
	require.Eventually(t, func() bool {
		_, err := os.Stat(w.Path("seed", "documents", "plan-shop"))
		return err == nil
	}, stateLimit, 100*time.Millisecond, "the process server brings the plan to the store, also after Temporal was away")
	record := w.Path("record.json")
	w.drover("verify", "db-1", "--deep", "--record", record)
	r1, err := lab.ReadRecord(record)
	require.NoError(t, err)
	require.Contains(t, []stream.Verdict{stream.VerdictEqual, stream.VerdictUnsettled}, r1.Verdict, "while it is written")
	w.recoverAlone("db-1")
}

// changesInVCenter: what somebody does there is in the machine's workflow in seconds; its
// tags have been from the beginning.
func (w *world) changesInVCenter(name string) {
	w.t.Helper()
	w.t.Log("a VM is renamed in vCenter")
	var tagged api.DiscoveryStatus
	require.NoError(w.t, w.DroverJSON(w.ctx, &tagged, "discover", lab.VCenterName, "--tag", "tier/gold"))
	require.Empty(w.t, tagged.TagsError)
	require.Len(w.t, tagged.VMs, 1)
	require.Equal(w.t, name, tagged.VMs[0].Name)
	require.Contains(w.t, w.drover("status", name), "tags in vCenter: tier/gold")
	for from, to := name, name+" (old)"; ; from, to = to, from {
		require.NoError(w.t, w.Rename(w.ctx, from, to))
		begun := time.Now()
		require.Eventually(w.t, func() bool {
			status, err := w.Status(w.ctx)
			return err == nil && status[name].Machine.VM.Name == to
		}, stateLimit, 100*time.Millisecond)
		w.t.Logf("seen in the machine's status %s later", time.Since(begun).Round(100*time.Millisecond))
		if to == name {
			return
		}
	}
}

// compares begins a comparison that is shown, joined, refused in another depth, and
// cancelled.
func (w *world) compares(name string) {
	w.t.Helper()
	w.t.Log("a comparison that is cancelled")
	ended := make(chan error, 1)
	go func() {
		_, err := w.Drover(w.ctx, "verify", name, "--rate", "1MiB/s")
		ended <- err
	}()
	require.Eventually(w.t, func() bool {
		status, err := w.Status(w.ctx)
		return err == nil && status[name].Stream != nil && status[name].Stream.Verify != nil
	}, stateLimit, 100*time.Millisecond)
	require.Contains(w.t, w.drover("status", name), "is compared with its replica since")
	require.Contains(w.t, w.refused(3, "verify", name, "--deep"), api.CodeBusy)
	w.drover("verify", name, "--cancel")
	var failed *lab.CLIError
	require.ErrorAs(w.t, <-ended, &failed)
	require.Equal(w.t, 1, failed.Exit)
	require.Contains(w.t, failed.Stderr, "was cancelled")
	require.Eventually(w.t, func() bool {
		status, err := w.Status(w.ctx)
		return err == nil && status[name].Stream != nil && status[name].Stream.Verify == nil
	}, stateLimit, 100*time.Millisecond)
	require.Equal(w.t, "no comparison of "+name+" is running", strings.TrimSpace(strings.TrimPrefix(w.refused(4, "verify", name, "--cancel"), "drover: ")))
	w.drover("verify", name)
	done := regexp.MustCompile(`compared with its replica at .*: (equal|unsettled), as of recovery point`)
	require.Eventually(w.t, func() bool { return done.MatchString(w.drover("status", name)) }, stateLimit, 100*time.Millisecond, "with the next heartbeat")
}

// recoverAlone gets a machine out of the store when everything else is gone.
func (w *world) recoverAlone(name string) {
	w.t.Helper()
	w.t.Log("everything but the store is gone")
	for _, p := range []*lab.Process{w.ConfigServer, w.ProcessServer, w.Temporal, w.VSim} {
		p.Kill()
	}
	checked, err := w.RecoverVerify(w.ctx, "seed", name, "")
	require.NoError(w.t, err)
	require.Contains(w.t, checked, "is what was attested")
	require.Contains(w.t, checked, "signed by process-server/")
	state, err := w.ReplicaState(w.ctx, "seed", w.vms[name].Machine)
	require.NoError(w.t, err)
	point := state.Points[len(state.Points)-1]
	text, err := exec.CommandContext(w.ctx, filepath.Join(w.Bin, "drover-recover"), "plans", "--store", w.Path("seed"), "--json").Output()
	require.NoError(w.t, err)
	var plans []recover.Plan
	require.NoError(w.t, json.Unmarshal(text, &plans))
	require.Len(w.t, plans, 1)
	require.Equal(w.t, "shop", plans[0].Name)
	require.Contains(w.t, plans[0].Groups[0].Machines, name)
	cmd := exec.CommandContext(w.ctx, filepath.Join(w.Bin, "drover-recover"), "write", name, "--store", w.Path("seed"), "--out", w.Path("recovered"), "--json")
	out, err := cmd.Output()
	require.NoError(w.t, err)
	var disks []recover.Disk
	require.NoError(w.t, json.Unmarshal(out, &disks))
	noted, err := w.NotedAt(name, point.Position)
	require.NoError(w.t, err)
	require.Len(w.t, disks, len(noted.Disks))
	for _, d := range disks {
		sum, err := guest.Digest(d.Path)
		require.NoError(w.t, err)
		require.Equal(w.t, noted.Disks[d.ID.String()], sum)
		_, err = lab.CheckFS(w.ctx, d.Path)
		require.NoError(w.t, err)
	}
}

// TestUnplannedFailover: the site's network is gone. The machine comes up from the
// newest recovery point, what is lost is told, and the old side stays out.
func TestUnplannedFailover(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.protect("db-1", "app-1")
	w.await(api.StateProtected, "db-1", "app-1")
	w.drover("plan", "apply", "-f", w.write("plan.yaml", plan, 0o600))
	_, err := w.WaitPoints(w.ctx, "db-1", 2, time.Time{}, stateLimit)
	require.NoError(t, err)
	w.Network("db-1").Cut()
	time.Sleep(2 * time.Second) // of writes that are lost
	begun := time.Now()
	results := w.run("unplanned", func() {})
	r := results["db-1"]
	require.NotNil(t, r.Target)
	require.Greater(t, r.RPO.D(), time.Second, "what is lost is told")
	boot, err := w.WaitBoot(w.ctx, "db-1", r.Target.Instance, begun)
	require.NoError(t, err)
	require.Empty(t, boot.Problems)
	noted, err := w.NotedAt("db-1", r.Point.Position)
	require.NoError(t, err)
	require.Equal(t, noted.Disks, boot.Disks)

	// The old side is back. Its agent may not write: the store belongs to another epoch.
	state, err := w.ReplicaState(w.ctx, "seed", w.vms["db-1"].Machine)
	require.NoError(t, err)
	w.Network("db-1").Restore()
	_, err = w.RunPlan(w.ctx, "shop", "commit", planLimit, func(api.PlanStep) {}, func(string, api.PlanStep) error { return errors.New("no manual step") })
	require.NoError(t, err)
	w.await(api.StateCommitted, "db-1", "app-1")
	after, err := w.ReplicaState(w.ctx, "seed", w.vms["db-1"].Machine)
	require.NoError(t, err)
	require.Equal(t, state.Position, after.Position, "nothing is applied any more")
	require.Greater(t, after.Epoch, ident.Epoch(1))
	w.prove("seed", "db-1")
	w.prove("seed", "app-1")
}
