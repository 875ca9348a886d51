package pg

import (
	"errors"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"drover/agent/quiesce/freeze"
	"drover/agent/tracker"
	"drover/agent/tracker/changes"
	"drover/agent/tracker/choose"
	"drover/agent/tracker/ebpf"
	"drover/agent/tracker/scan"
	"drover/agent/tracker/trace"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/tests/lab/guest"
	"drover/tests/loop"
	"drover/tests/rig"
)

var (
	points  = flag.Int("points", 20, "how many points are recovered")
	length  = flag.Duration("length", 0, "how long freezes are measured under each load; 0: not at all")
	trackBy = flag.String("tracker", "", "ebpf, trace or scan; empty: the best that works here")
)

// TestMain is also the guard process of freezes.
func TestMain(m *testing.M) {
	rig.Guard()
	goleak.VerifyTestMain(m)
}

const cadence = 1500 * time.Millisecond // of points

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(guest.Tool(name), args...).CombinedOutput()
	require.NoError(t, err, "%s %v: %s", name, args, out)
	return strings.TrimSpace(string(out))
}

// protected is a machine with a mounted file system on its only disk.
func protected(t *testing.T, fstype string, size int64) (r *rig.Rig, mount string) {
	t.Helper()
	if !filepath.IsAbs(guest.Tool("mkfs." + fstype)) {
		loop.Missing(t, "mkfs."+fstype+" is not installed")
	}
	r = rig.New(t, size)
	r.Device = loop.Attach(t, r.Path("a")).Path
	run(t, "mkfs."+fstype, "-q", r.Device)
	mount = mounted(t, r.Device)
	r.Hooks.Freezer = &freeze.Freezer{}
	r.Hooks.Marker = filepath.Join(r.Dir, "frozen")
	r.Retention = replica.Retention{Keep: 24 * time.Hour, Steps: []replica.ThinStep{{Until: 24 * time.Hour}}}
	r.Track = track(t, r)
	t.Cleanup(r.StopAgent) // before the file system is unmounted
	return r, mount
}

// mountPoint makes a directory that the database's user gets into.
func mountPoint(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "pg")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.Remove(dir)) })
	require.NoError(t, os.Chmod(dir, 0o755))
	return dir
}

// mounted mounts a device or an image until the test ends.
func mounted(t *testing.T, what string) string {
	t.Helper()
	point := mountPoint(t)
	run(t, "mount", what, point)
	t.Cleanup(func() { loop.Unmount(t, point) })
	return point
}

// track takes the best tracker that works here, as the agent does.
func track(t *testing.T, r *rig.Rig) func(tracker.Tracker) tracker.Tracker {
	t.Helper()
	var candidates []choose.Candidate
	for _, c := range []choose.Candidate{
		{Name: ebpf.Name, Open: func() (changes.Source, error) { return ebpf.Open("") }},
		{Name: "trace", Open: func() (changes.Source, error) { return trace.Open(trace.Options{}) }},
	} {
		if *trackBy == "" || *trackBy == c.Name {
			candidates = append(candidates, c)
		}
	}
	return func(tracker.Tracker) tracker.Tracker {
		if *trackBy == "scan" {
			return scan.New()
		}
		c := choose.New(r.Log(), candidates...)
		t.Cleanup(func() { t.Logf("tracker: %s", c.Why()) })
		return c
	}
}

// export writes the disk, as of a point, to a file, leaving out what is zero.
func export(t *testing.T, reader replica.Reader, r *rig.Rig, point ident.Seq, file string) {
	t.Helper()
	d, err := reader.OpenDisk(t.Context(), point, r.Disks[0].ID)
	require.NoError(t, err)
	f, err := os.Create(file)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(d.Size()))
	buf, zero := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); off < d.Size(); off += int64(len(buf)) {
		part := buf[:min(int64(len(buf)), d.Size()-off)]
		_, err := io.ReadFull(io.NewSectionReader(d, off, int64(len(part))), part)
		require.NoError(t, err)
		if string(part) != string(zero[:len(part)]) {
			_, err = f.WriteAt(part, off)
			require.NoError(t, err)
		}
	}
	require.NoError(t, errors.Join(f.Close(), d.Close()))
}
