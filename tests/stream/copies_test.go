package stream

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"drover/agent/disk"
	"drover/agent/quiesce/vss"
	"drover/datapath/ident"
	pipe "drover/datapath/stream"
	"drover/tests/rig"
)

const (
	volume   = `\\?\Volume{351b4712-0000-0000-0000-602200000000}\`
	shadowed = `\\?\GLOBALROOT\Device\HarddiskVolumeShadowCopy4`
	// The volume's blocks on its disk.
	volumeAt, volumeLen = 16, 240
)

// copied is a machine whose disk is a volume of Windows with some blocks around it, with
// a double of diskshadow that copies the volume at one moment.
type copied struct {
	*rig.Rig
	lock *os.File // held while the disk is written, and while it is copied
	// moments are the contents the disk has had.
	mu      sync.Mutex
	moments map[string]int
	written uint64
}

func newCopied(t *testing.T, states string) *copied {
	t.Helper()
	r := &copied{Rig: rig.New(t, 300*rig.Block), moments: map[string]int{}}
	shadow, lock := filepath.Join(r.Dir, "shadow"), filepath.Join(r.Dir, "lock")
	made := filepath.Join(r.Dir, "made.txt")
	text := "Alias VSS_SHADOW_SET for shadow set ID {97a10120-9375-41c3-98f8-b0fc8f94582e} set as environment variable.\n" +
		"* Shadow copy ID = {094aa50e-c1eb-4daf-b335-b2b631a7611e} %drover_0%\n" +
		"- Shadow copy set: {97a10120-9375-41c3-98f8-b0fc8f94582e} %VSS_SHADOW_SET%\n" +
		"- Original volume name: " + volume + " [C:\\]\n- Shadow copy device name: " + shadowed + "\n" + states
	require.NoError(t, os.WriteFile(made, []byte(text), 0o600))
	diskshadow := filepath.Join(r.Dir, "diskshadow")
	body := fmt.Sprintf("#!/bin/sh\ncase \"$(cat \"$2\")\" in\n*create*) flock %s dd if=%s of=%s bs=%d skip=%d count=%d status=none && cat %s ;;\n*delete*) rm %s ;;\nesac\n",
		lock, r.Path("a"), shadow, rig.Block, volumeAt, volumeLen, made, shadow)
	require.NoError(t, os.WriteFile(diskshadow, []byte(body), 0o700))
	var err error
	r.lock, err = os.Create(lock)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.lock.Close()) })
	r.Hooks.Copier = &vss.Provider{Dir: filepath.Join(r.Dir, "vss"), Program: []string{diskshadow}, Layout: func(disks []string) (*vss.Layout, error) {
		return vss.Arrange(disks, []disk.Volume{{Name: volume, FileSystem: "NTFS", Mounts: []string{`C:\`},
			Extents: []disk.Extent{{Disk: r.Path("a"), Offset: volumeAt * rig.Block, Length: volumeLen * rig.Block}}}}), nil
	}}
	r.OpenCopy = func(device string) (*disk.Disk, error) {
		require.Equal(t, shadowed, device)
		return disk.Open(shadow)
	}
	for at := range int64(300) {
		r.write(at)
	}
	return r
}

// write writes what was never there to a block, and notes the moment.
func (r *copied) write(at int64) {
	require.NoError(r.T, unix.Flock(int(r.lock.Fd()), unix.LOCK_EX))
	r.written++
	b := make([]byte, rig.Block)
	binary.LittleEndian.PutUint64(b, r.written)
	r.Write(0, at, b)
	r.mu.Lock()
	r.moments[r.Digest()] = int(r.written)
	r.mu.Unlock()
	require.NoError(r.T, unix.Flock(int(r.lock.Fd()), unix.LOCK_UN))
}

// busy writes to blocks of the volume until stop is called.
func (r *copied) busy() (stop func()) {
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for at := int64(0); ; at++ {
			select {
			case <-end:
				return
			default:
				r.write(volumeAt + at*7%volumeLen)
			}
		}
	}()
	return func() { close(end); <-done }
}

func (r *copied) start() {
	r.StartServer()
	r.Grant(1, rig.Limit)
	r.StartAgent(1)
}

const stable = "* WRITER \"System Writer\"\n- Status: 5 (VSS_WS_WAITING_FOR_BACKUP_COMPLETE)\n"

// TestPointsFromShadowCopies: a machine that never stops writing gets points that are
// each one moment, and shadow copies are gone after each.
func TestPointsFromShadowCopies(t *testing.T) {
	r := newCopied(t, stable)
	stop := r.busy()
	defer func() { stop() }()
	r.start()
	r.Await("complete", complete)
	for range 4 {
		p := r.AfterNow()
		require.Equal(t, ident.ApplicationConsistent, p.Consistency, p.Note)
	}
	require.Eventually(t, func() bool { _, err := os.Stat(filepath.Join(r.Dir, "shadow")); return os.IsNotExist(err) }, rig.Limit, rig.Limit/1000)
	last := 0
	for _, p := range r.Points() {
		r.mu.Lock()
		now, is := r.moments[r.DigestAt(p)]
		r.mu.Unlock()
		require.True(t, is, "point %d is no moment of the source", p.ID)
		require.Greater(t, now, last)
		last = now
	}
	require.GreaterOrEqual(t, len(r.Points()), 5)
	notes, err := filepath.Glob(filepath.Join(r.Dir, "vss", "made-*"))
	require.NoError(t, err)
	require.Empty(t, notes)
}

// TestWriterThatFails: the point is worth less, and says which it was.
func TestWriterThatFails(t *testing.T) {
	r := newCopied(t, stable+"* WRITER \"SqlServerWriter\"\n- Status: 8 (VSS_WS_FAILED_AT_FREEZE)\n")
	r.start()
	r.Await("complete", complete)
	p := r.AfterNow()
	require.Equal(t, ident.FileSystemConsistent, p.Consistency)
	require.Contains(t, p.Note, "SqlServerWriter")
}

// TestWritesBesideTheShadowCopies: what has no copy and changes makes no point, as it
// would be of another moment; when it is quiet there is one again.
func TestWritesBesideTheShadowCopies(t *testing.T) {
	r := newCopied(t, stable)
	open := r.OpenCopy
	var beside atomic.Bool
	beside.Store(true)
	r.OpenCopy = func(device string) (*disk.Disk, error) {
		if beside.Load() {
			r.write(3) // after the moment of the copies, and before it is read
		}
		return open(device)
	}
	r.StartServer()
	r.Grant(1, 10*time.Millisecond)
	r.StartAgent(1)
	for range 3 {
		r.Await("no point", func(pipe.Status) bool { return strings.Contains(r.State().Detail, "beside the shadow copies") })
		require.Empty(t, r.Points())
		r.StopAgent()
		r.StartAgent(1)
	}
	beside.Store(false)
	r.Await("complete", complete)
	require.Equal(t, r.Digest(), r.DigestAt(r.AfterNow()))
}
