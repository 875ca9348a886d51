package vsphere

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/vapi/rest"
	"github.com/vmware/govmomi/vapi/tags"
	"github.com/vmware/govmomi/vim25/mo"

	"drover/workflows/api"
)

var benchVMs = flag.Int("bench-vms", 2000, "VMs of BenchmarkDiscovery")

// BenchmarkDiscovery measures a full pass and the begin of a watch over many VMs with five
// tags each, and its history's bytes. The vCenter is another process, loaded from a saved model:
// memory is this one's, what stays (heap) and the most there was (RSS).
func BenchmarkDiscovery(b *testing.B) {
	v, secrets := savedVCenter(b, *benchVMs)
	a := benchActivities(b, secrets, v)
	benchTags(b, a, v)

	b.Run("pass", func(b *testing.B) {
		m := measure(b)
		for b.Loop() {
			out, err := a.Inventory(b.Context(), v)
			require.NoError(b, err)
			require.Len(b, out.VMs, *benchVMs)
			require.Empty(b, out.TagsError)
			require.Len(b, out.VMs[0].Tags, 5)
			m.told(out.VMs)
		}
	})
	b.Run("watch", func(b *testing.B) {
		m := measure(b)
		for b.Loop() {
			ctx, stop := context.WithCancel(b.Context())
			a.config.Tell = func(_ context.Context, _ string, r api.WatchReport) error {
				require.Len(b, r.VMs, *benchVMs)
				require.Len(b, r.VMs[0].Tags, 5)
				m.told(r.VMs)
				stop()
				return nil
			}
			err := a.Watch(ctx, api.WatchInput{VCenter: v, For: api.Duration(time.Hour)})
			require.True(b, errors.Is(err, context.Canceled), "%v", err)
		}
	})
}

// savedVCenter runs a vCenter of so many VMs, and gives its user's secrets. The saved model
// is below build; the first time it is made.
func savedVCenter(b *testing.B, vms int) (v api.VCenter, secrets string) {
	b.Helper()
	program := filepath.Join(b.TempDir(), "saved")
	out, err := exec.CommandContext(b.Context(), "go", "build", "-o", program, "drover/tests/vsim/saved").CombinedOutput()
	require.NoError(b, err, "%s", out)
	cmd := exec.Command(program, "-vms", strconv.Itoa(vms), "-dir", "../../build/vcenters") //nolint:noctx // ends with its standard input
	in, err := cmd.StdinPipe()
	require.NoError(b, err)
	told, err := cmd.StdoutPipe()
	require.NoError(b, err)
	cmd.Stderr = os.Stderr
	require.NoError(b, cmd.Start())
	b.Cleanup(func() { _ = in.Close(); require.NoError(b, cmd.Wait()) })
	var info struct {
		URL, Thumbprint string
		Made, Loaded    float64
		Bytes           int64
	}
	require.NoError(b, json.NewDecoder(told).Decode(&info))
	b.Logf("a vCenter of %d VMs: made in %.1f s (0: it was saved), %d bytes loaded in %.1f s", vms, info.Made, info.Bytes, info.Loaded)
	secrets = b.TempDir()
	require.NoError(b, os.WriteFile(filepath.Join(secrets, "vc"), []byte("user: drover\npassword: x\n"), 0o600))
	return api.VCenter{Name: "vc-1", URL: info.URL, Credentials: "vc", Thumbprint: info.Thumbprint}, secrets
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

// measured is what a benchmark measures of this process's memory.
type measured struct {
	b      *testing.B
	before uint64
}

func measure(b *testing.B) *measured {
	m := &measured{b: b, before: heap()}
	debug.FreeOSMemory()
	require.NoError(b, os.WriteFile("/proc/self/clear_refs", []byte("5"), 0)) // the most from now on
	return m
}

// told reports what the VMs take, while they are held.
func (m *measured) told(vms api.VMList) {
	m.b.StopTimer()
	defer m.b.StartTimer()
	peak := peakRSS(m.b)
	text, err := json.Marshal(vms)
	require.NoError(m.b, err)
	m.b.ReportMetric(float64(len(text))/1024, "history-KiB")
	m.b.ReportMetric(float64(heap()-m.before)/(1<<20), "heap-MiB")
	m.b.ReportMetric(peak, "peak-RSS-MiB")
}

func heap() uint64 {
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.HeapAlloc
}

func peakRSS(b *testing.B) float64 {
	status, err := os.ReadFile("/proc/self/status")
	require.NoError(b, err)
	_, after, _ := strings.Cut(string(status), "VmHWM:")
	var kb float64
	_, err = fmt.Sscan(after, &kb)
	require.NoError(b, err)
	return kb / 1024
}

func benchActivities(b *testing.B, secrets string, v api.VCenter) *Activities {
	a, err := New(Config{Secrets: secrets, Logger: slog.New(slog.DiscardHandler),
		Tell:   func(context.Context, string, api.WatchReport) error { return nil },
		Lookup: func(context.Context, string) (api.VCenter, error) { return v, nil }})
	require.NoError(b, err)
	b.Cleanup(func() { a.Close(context.Background()) })
	return a
}
