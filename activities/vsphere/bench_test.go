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
	"github.com/vmware/govmomi/vapi/rest"
	_ "github.com/vmware/govmomi/vapi/simulator" // the simulator's REST
	"github.com/vmware/govmomi/vapi/tags"
	"github.com/vmware/govmomi/vim25/mo"

	"drover/workflows/api"
)

var benchVMs = flag.Int("bench-vms", 2000, "VMs of BenchmarkDiscovery")

// BenchmarkDiscovery measures a full pass and the begin of a watch over many VMs with five
// tags each, and its history's bytes. Heap is what the activities hold beside the simulator, which
// is in the same process.
func BenchmarkDiscovery(b *testing.B) {
	m := simulator.VPX()
	m.Cluster, m.Machine, m.Autostart = 4, *benchVMs/4, false
	m.Host, m.ClusterHost = 0, 4
	require.NoError(b, m.Create())
	defer m.Remove()
	m.Service.TLS, m.Service.RegisterEndpoints = new(tls.Config), true
	server := m.Service.NewServer()
	defer server.Close()
	secrets := b.TempDir()
	require.NoError(b, os.WriteFile(filepath.Join(secrets, "vc"), []byte("user: drover\npassword: x\n"), 0o600))
	v := api.VCenter{Name: "vc-1", URL: "https://" + server.URL.Host + "/sdk", Credentials: "vc",
		Thumbprint: fmt.Sprintf("%X", sha256.Sum256(server.Certificate().Raw))}
	a := benchActivities(b, secrets, v)
	defer a.Close(context.Background())
	benchTags(b, a, v)

	b.Run("pass", func(b *testing.B) {
		for range b.N {
			before := heap()
			out, err := a.Inventory(b.Context(), v)
			require.NoError(b, err)
			require.Len(b, out.VMs, *benchVMs)
			require.Empty(b, out.TagsError)
			require.Len(b, out.VMs[0].Tags, 5)
			told(b, out.VMs, before)
		}
	})
	b.Run("watch", func(b *testing.B) {
		for range b.N {
			before := heap()
			ctx, stop := context.WithCancel(b.Context())
			a.config.Tell = func(_ context.Context, _ string, r api.WatchReport) error {
				require.Len(b, r.VMs, *benchVMs)
				require.Len(b, r.VMs[0].Tags, 5)
				told(b, r.VMs, before)
				stop()
				return nil
			}
			err := a.Watch(ctx, api.WatchInput{VCenter: v, For: api.Duration(time.Hour)})
			require.True(b, errors.Is(err, context.Canceled), "%v", err)
		}
	})
}

// benchTags gives each VM one tag of each of five categories, 100 tags in all.
func benchTags(b *testing.B, a *Activities, v api.VCenter) {
	ctx := b.Context()
	require.NoError(b, a.on(ctx, v, func(s *session) error {
		vms, err := s.list(ctx, []string{"name"})
		require.NoError(b, err)
		return s.onREST(ctx, func(c *rest.Client) error {
			m := tags.NewManager(c)
			for _, category := range []string{"tier", "app", "owner", "zone", "backup"} {
				in, err := m.CreateCategory(ctx, &tags.Category{Name: category})
				require.NoError(b, err)
				for n := range 20 {
					tag, err := m.CreateTag(ctx, &tags.Tag{Name: fmt.Sprintf("%s-%02d", category, n), CategoryID: in})
					require.NoError(b, err)
					var refs []mo.Reference
					for i := n; i < len(vms); i += 20 {
						refs = append(refs, vms[i].Self)
					}
					require.NoError(b, m.AttachTagToMultipleObjects(ctx, tag, refs))
				}
			}
			return nil
		})
	}))
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
