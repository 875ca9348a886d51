package e2e

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/tests/azurite"
	"drover/tests/lab"
	"drover/workflows/api"
)

// relay waits for the temporary process server.
func (w *world) relay() *lab.Process {
	w.t.Helper()
	var p *lab.Process
	require.Eventually(w.t, func() bool { p = w.Relay(); return p != nil }, stateLimit, 10*time.Millisecond)
	return p
}

// TestBackByATemporaryProcessServer: a machine fails over to Azure and streams back by way
// of a temporary process server: the program itself, with what its machine was given for
// its first boot. It is killed while it boots, and while the machine streams: the stream
// stops, and goes on when it is there again. Every point is what the machine was.
func TestBackByATemporaryProcessServer(t *testing.T) {
	t.Parallel()
	programs(t)
	storage, err := azurite.Start(t.Context(), t.TempDir())
	azurite.Need(t, err)
	t.Cleanup(func() { require.NoError(t, storage.Stop()) })
	const name = "app-1"
	w := startWorld(t, lab.Options{
		Azure: storage.Endpoint(), VMs: []lab.VMSpec{{Name: name, Disks: []lab.DiskSpec{{Size: 64 << 20, Content: content(t) + "/compile"}}}},
	})
	w.drover("policy", "apply", "-f", w.write("policy.yaml", policy, 0o600))
	w.drover("protect", name, "--policy", "gold", "--network", lab.Network, "--subnet", lab.Subnet, "--test-network", lab.TestNetwork, "--relay")
	w.await(api.StateProtected, name)
	require.Nil(t, w.Relay())
	w.act("failover", name, "--planned")
	w.act("commit", name)

	begun := time.Now()
	done := make(chan error, 1)
	go func() {
		_, err := w.Drover(w.ctx, "reprotect", name)
		done <- err
	}()
	relay := w.relay()
	w.kill(relay)
	require.NoError(t, <-done)
	w.await(api.StateProtectedReverse, name)
	_, err = w.WaitPoints(w.ctx, name, 2, begun, stateLimit)
	require.NoError(t, err)

	t.Log("without it nothing comes")
	relay.Kill()
	away := time.Now()
	time.Sleep(4 * time.Second) // what had passed it is applied
	before := w.points(name)
	time.Sleep(2 * cutInterval)
	require.Equal(t, before, w.points(name))
	require.NoError(t, relay.Start())
	w.goesOn(name, before)
	t.Logf("away for %s", time.Since(away).Round(time.Second))
	for range 3 {
		before = w.points(name)
		time.Sleep(time.Second)
		w.kill(relay)
		w.goesOn(name, before)
	}
	t.Logf("%d points proven", w.prove("retention", name).Points)

	begun = time.Now()
	r := w.act("failback", name)
	w.booted(name, w.vms[name].BIOSUUID, r, begun)
	require.NoError(t, w.WaitNoRelay(w.ctx), "it goes with the last that needs it")
	require.False(t, relay.Running())
	w.noSecrets()
}
