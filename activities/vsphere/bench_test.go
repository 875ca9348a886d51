package vsphere

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/simulator"

	"drover/workflows/api"
)

var benchVMs = flag.Int("bench-vms", 2000, "VMs of BenchmarkDiscovery")

// BenchmarkDiscovery measures a full pass and the begin of a watch over many VMs, each
// with its history's bytes. Heap is what the activities hold beside the simulator, which
// is in the same process.
func BenchmarkDiscovery(b *testing.B) {
	m := simulator.VPX()
	m.Cluster, m.Machine, m.Autostart = 4, *benchVMs/4, false
	m.Host, m.ClusterHost = 0, 4
	require.NoError(b, m.Create())
	defer m.Remove()
	m.Service.TLS = new(tls.Config)
	server := m.Service.NewServer()
	defer server.Close()
	secrets := b.TempDir()
	require.NoError(b, os.WriteFile(filepath.Join(secrets, "vc"), []byte("user: drover\npassword: x\n"), 0o600))
	v := api.VCenter{Name: "vc-1", URL: "https://" + server.URL.Host + "/sdk", Credentials: "vc",
		Thumbprint: fmt.Sprintf("%X", sha256.Sum256(server.Certificate().Raw))}
	a := benchActivities(b, secrets, v)
	defer a.Close(context.Background())

	b.Run("pass", func(b *testing.B) {
		for range b.N {
			before := heap()
			out, err := a.Inventory(b.Context(), v)
			require.NoError(b, err)
			require.Len(b, out.VMs, *benchVMs)
			told(b, out.VMs, before)
		}
	})
	b.Run("watch", func(b *testing.B) {
		for range b.N {
			before := heap()
			ctx, stop := context.WithCancel(b.Context())
			a.config.Tell = func(_ context.Context, _ string, r api.WatchReport) error {
				require.Len(b, r.VMs, *benchVMs)
				told(b, r.VMs, before)
				stop()
				return nil
			}
			err := a.Watch(ctx, api.WatchInput{VCenter: v, For: api.Duration(time.Hour)})
			require.True(b, errors.Is(err, context.Canceled), "%v", err)
		}
	})
}

func heap() uint64 {
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.HeapAlloc
}

func told(b *testing.B, vms api.VMList, before uint64) {
	text, err := json.Marshal(vms)
	require.NoError(b, err)
	b.ReportMetric(float64(len(text))/1024, "history-KiB")
	b.ReportMetric(float64(heap()-before)/(1<<20), "heap-MiB")
}

func benchActivities(b *testing.B, secrets string, v api.VCenter) *Activities {
	a, err := New(Config{Secrets: secrets, Logger: slog.New(slog.DiscardHandler),
		Tell:   func(context.Context, string, api.WatchReport) error { return nil },
		Lookup: func(context.Context, string) (api.VCenter, error) { return v, nil }})
	require.NoError(b, err)
	return a
}
