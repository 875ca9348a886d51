package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/agent/controlapi"
	"drover/agent/status"
	"drover/datapath/ident"
)

// execute runs the program with arguments.
func execute(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	c := command()
	c.SetArgs(args)
	c.SetOut(&out)
	c.SetErr(&out)
	err := c.ExecuteContext(t.Context())
	return out.String(), err
}

func TestStatus(t *testing.T) {
	dir, err := os.MkdirTemp("", "ag") // a socket's path is short
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	_, err = execute(t, "status", "--socket", socket)
	require.ErrorIs(t, err, status.ErrNotRunning)
	require.ErrorContains(t, err, "systemctl status drover-agent")

	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	st := status.Status{Version: "1.2", PID: 7, State: "streaming", Started: at, Time: at.Add(time.Minute), Problems: []string{"look here"},
		Identity: status.Identity{Name: "agent/m", Expires: at, RenewAt: at}, Control: status.Control{Server: "https://cs", LastAnswer: at, Offset: -1.5},
		Assignment: &controlapi.Assignment{Action: controlapi.ActionReplicate, Server: "ps-1", Address: "a:1", Epoch: 4}, Position: "4/9/abc", Stored: "4/8/abc",
		Tracker: "scan", LastCut: &status.Cut{Time: at, Consistency: ident.ApplicationConsistent, Freeze: .012},
		Limits: status.Limits{Memory: 64 << 20, ReadRate: 10 << 20, Paused: 3, Pressure: "the guest waits"}, Counters: map[string]float64{"passes_total": 12},
		Disks: []controlapi.InventoryDisk{{Path: "/dev/sda", Size: 1 << 30, Protected: true, Parts: []controlapi.InventoryPart{{Name: "sda1", Kind: "partition", FileSystem: "ext4", Mounts: []string{"/"}}}},
			{Path: "/dev/sdb", Size: 1 << 30, Why: "removable"}},
		Preflight: []controlapi.Finding{{Check: "fstab", Level: controlapi.LevelFail, What: "by name", Advice: "use UUID="}}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- status.Serve(ctx, socket, func() status.Status { return st }) }()
	defer func() { cancel(); require.NoError(t, <-done) }()
	require.Eventually(t, func() bool { _, err := status.Get(t.Context(), socket); return err == nil }, 10*time.Second, time.Millisecond)

	out, err := execute(t, "status", "--socket", socket)
	require.NoError(t, err)
	for _, want := range []string{"State       streaming", "Problem     look here", "agent/m, certificate until 2030-01-02T03:04:05Z", "answered 1m0s ago, its clock is -1.5 s off ours",
		"replicate to ps-1 at a:1, epoch 4", "4/9/abc; safe up to 4/8/abc", "app, frozen for 12 ms", "reads at most 10.0 MiB/s, waited 3 s for the guest's sake the guest waits",
		"/dev/sda, 1024 MiB, protected\n", "sda1 (partition), 0 MiB ext4 on /", "/dev/sdb, 1024 MiB, not protected: removable", "passes_total = 12", "by name: use UUID="} {
		require.Contains(t, out, want)
	}
	out, err = execute(t, "status", "--socket", socket, "--json")
	require.NoError(t, err)
	var got status.Status
	require.NoError(t, json.Unmarshal([]byte(out), &got))
	require.Equal(t, st, got)
}

func TestDoctorsExitCode(t *testing.T) {
	file := filepath.Join(t.TempDir(), "agent.yaml")
	out, err := execute(t, "doctor", "--config", file)
	require.ErrorIs(t, err, errUnwell)
	require.Contains(t, out, "FAIL  configuration")
	require.Contains(t, out, "-> correct it")
	require.NoError(t, os.WriteFile(file, []byte("configServer: https://127.0.0.1:1\nstate: state\ninstance: i\nsocket: s\n"), 0o600))
	out, err = execute(t, "doctor", "--config", file, "--json")
	require.ErrorIs(t, err, errUnwell)
	var all []controlapi.Finding
	require.NoError(t, json.Unmarshal([]byte(out), &all))
	require.Greater(t, len(all), 10)
}
