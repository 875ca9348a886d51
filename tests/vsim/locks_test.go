package vsim_test

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"drover/activities/vsphere"
	"drover/tests/vsim"
	"drover/workflows/api"
)

const (
	busyFor = 5 * time.Second
	hangs   = 30 * time.Second // a call that has no answer until then has none
)

// TestSessionsEndInTheMiddle: sessions end while they watch, as when a configuration
// server stops, and VMs change meanwhile. Every call has an answer.
func TestSessionsEndInTheMiddle(t *testing.T) {
	dir := t.TempDir()
	spec := vsim.Spec{User: "drover", Password: "secret word", VMs: []vsim.VMSpec{{Name: "db-1", CPUs: 1, MemoryMB: 1024}, {Name: "app-1", CPUs: 1, MemoryMB: 1024}}}
	spec.MasterTarget.Name = "mt-1"
	sim, err := vsim.Start(t.Context(), dir, "127.0.0.1:0", spec)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "vc"), []byte("user: drover\npassword: secret word\n"), 0o600))
	vcenter := api.VCenter{Name: "vc-1", URL: sim.Info().URL, Thumbprint: sim.Info().Thumbprint, Credentials: "vc"}
	until := time.Now().Add(busyFor)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for time.Now().Before(until) {
				watchAndEnd(t, dir, vcenter)
			}
		})
	}
	for _, name := range []string{"db-1", "app-1"} {
		wg.Go(func() {
			for time.Now().Before(until) && change(t, sim, name) {
			}
		})
	}
	done := make(chan struct{})
	go func() {
		wg.Wait()
		sim.Close()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(busyFor + hangs):
		t.Fatal("the simulator hangs")
	}
}

// watchAndEnd has a session of its own, and ends it while its watch ends.
func watchAndEnd(t *testing.T, secrets string, vcenter api.VCenter) {
	t.Helper()
	a, err := vsphere.New(vsphere.Config{Secrets: secrets, Logger: slog.New(slog.DiscardHandler), Gather: 10 * time.Millisecond,
		Tell:   func(context.Context, string, api.WatchReport) error { return nil },
		Lookup: func(context.Context, string) (api.VCenter, error) { return vcenter, nil }})
	if err != nil {
		t.Error(err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = a.Watch(ctx, api.WatchInput{VCenter: vcenter, For: api.Duration(time.Minute)}) // it is cancelled
	}()
	time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond)
	cancel()
	a.Close(context.Background())
	<-ended
}

// change changes a VM, and says whether it could.
func change(t *testing.T, sim *vsim.Sim, name string) bool {
	vm, err := sim.VM(context.Background(), name)
	if err == nil {
		var task *object.Task
		task, err = vm.Reconfigure(context.Background(), types.VirtualMachineConfigSpec{MemoryMB: int64(1024 + 4*rand.IntN(100))})
		if err == nil {
			err = task.Wait(context.Background())
		}
	}
	if err != nil {
		t.Errorf("change %s: %v", name, err)
	}
	return err == nil
}
