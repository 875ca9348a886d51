package groups

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"drover/agent/quiesce/freeze"
	"drover/datapath/ident"
	"drover/datapath/replica"
	pipe "drover/datapath/stream"
	"drover/tests/lab"
	"drover/tests/lab/guest"
	"drover/tests/loop"
	"drover/tests/rig"
)

const (
	diskBytes   = 8 << 20
	cadence     = 100 * time.Millisecond
	freezeLimit = 2 * time.Second
	thawing     = time.Second // the guard thaws at the limit, and that is part of the freeze
)

// TestMain is also the guard process of freezes.
func TestMain(m *testing.M) {
	rig.Guard()
	goleak.VerifyTestMain(m)
}

// machine is a member of the group: a device with a mounted ext4, on which a number is
// written in place.
type machine struct {
	*rig.Rig
	mount string
	file  *os.File
	at    int64 // of the number on the device
}

// newMachine makes the device, and protects it.
func newMachine(r *rig.Rig) *machine {
	t := r.T
	t.Helper()
	m := &machine{Rig: r, mount: t.TempDir()}
	r.Device = loop.Attach(t, r.Path(r.Disks[0].BackingUUID)).Path
	content := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(content, "number"), make([]byte, rig.Block), 0o600))
	require.NoError(t, lab.Format(t.Context(), r.Device, "test", content))
	run(t, "mount", r.Device, m.mount)
	t.Cleanup(func() { loop.Unmount(t, m.mount) })
	var err error
	m.file, err = os.OpenFile(filepath.Join(m.mount, "number"), os.O_RDWR, 0)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.file.Close()) })
	t.Cleanup(r.StopAgent)                                                      // before the file system is unmounted
	m.write(0)                                                                  // its block is there from now on
	said := strings.Fields(run(t, "debugfs", "-R", "blocks /number", r.Device)) // its version, then the block
	block, err := strconv.ParseInt(said[len(said)-1], 10, 64)
	require.NoError(t, err)
	m.at = block * rig.Block
	r.Hooks.Freezer = &freeze.Freezer{Limit: freezeLimit}
	r.Hooks.Marker = filepath.Join(r.Dir, "frozen-"+r.Name)
	return m
}

// write makes the number durable.
func (m *machine) write(n uint64) {
	require.NoError(m.T, m.tryWrite(n))
}

func (m *machine) tryWrite(n uint64) error {
	if _, err := m.file.WriteAt(binary.LittleEndian.AppendUint64(nil, n), 0); err != nil {
		return err
	}
	return m.file.Sync()
}

// numberAt gives the number as a point has it.
func (m *machine) numberAt(p replica.Point) uint64 {
	m.T.Helper()
	d, err := m.Reader().OpenDisk(m.T.Context(), p.ID, m.Disks[0].ID)
	require.NoError(m.T, err)
	defer func() { require.NoError(m.T, d.Close()) }()
	b := make([]byte, rig.Block)
	_, err = d.ReadAt(b, m.at)
	require.NoError(m.T, err)
	return binary.LittleEndian.Uint64(b)
}

// goesOn checks that nothing is frozen for longer than it may be.
func (m *machine) goesOn() {
	m.T.Helper()
	written := make(chan error, 1)
	go func() {
		f, err := os.CreateTemp(m.mount, "free-")
		if err == nil {
			err = f.Sync()
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
		written <- err
	}()
	select {
	case err := <-written:
		require.NoError(m.T, err)
	case <-time.After(rig.Limit):
		require.FailNow(m.T, "the file system is left frozen", m.Name)
	}
}

// shop makes three machines of one group; nothing runs but the server.
func shop(t *testing.T, group *pipe.Group) []*machine {
	t.Helper()
	need(t)
	first := rig.New(t, diskBytes)
	first.Name = "a"
	first.StartServer()
	all := []*machine{newMachine(first)}
	for _, name := range []string{"b", "c"} {
		r := first.Another(name)
		r.Dir = first.Dir // where the server's store is
		r.AddDisk(name, diskBytes)
		all = append(all, newMachine(r))
	}
	for _, m := range all {
		m.Group = group
		m.Grant(1, cadence)
	}
	return all
}

// need skips where something is missing; in continuous integration that fails.
func need(t *testing.T) {
	t.Helper()
	loop.Need(t)
	if err := lab.NeedTools(); err != nil {
		loop.Missing(t, err.Error())
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(guest.Tool(name), args...).CombinedOutput()
	require.NoError(t, err, "%s %v: %s", name, args, out)
	return strings.TrimSpace(string(out))
}

// writer writes an ever-growing number to one machine after the other, each only when
// it is durable on the one before, until it is stopped.
type writer struct {
	stopped atomic.Bool
	done    chan struct{}
}

func newWriter(all []*machine) *writer {
	w := &writer{done: make(chan struct{})}
	go func() {
		defer close(w.done)
		for n := uint64(1); !w.stopped.Load(); n++ {
			for _, m := range all {
				if err := m.tryWrite(n); err != nil {
					m.T.Errorf("write to %s: %v", m.Name, err)
					return
				}
			}
		}
	}()
	all[0].T.Cleanup(w.stop)
	return w
}

func (w *writer) stop() {
	w.stopped.Store(true)
	<-w.done
}

// rounds gives the points of each round that all machines have, by the order of the
// first machine's.
func rounds(all []*machine) (out [][]replica.Point) {
	have := make([]map[ident.Round]replica.Point, len(all))
	for i, m := range all {
		have[i] = map[ident.Round]replica.Point{}
		for _, p := range m.Points() {
			if p.Group != nil {
				have[i][p.Group.Round] = p
			}
		}
	}
	for _, p := range all[0].Points() {
		if p.Group == nil {
			continue
		}
		points := []replica.Point{p}
		for _, h := range have[1:] {
			if q, ok := h[p.Group.Round]; ok {
				points = append(points, q)
			}
		}
		if len(points) == p.Group.Members {
			out = append(out, points)
		}
	}
	return out
}

// awaitRounds waits for so many more rounds that all have.
func awaitRounds(all []*machine, more int) {
	t := all[0].T
	t.Helper()
	var last ident.Round
	count := func() ident.Round { return all[0].Status().Group.Round }
	for last = count(); more > 0; more-- {
		require.Eventually(t, func() bool { return count() != last }, rig.Limit, 10*time.Millisecond, "a point in common; missed: %+v", all[0].Status().Group)
		last = count()
	}
}

// inOrder says what is wrong with the numbers that the machines have: each was written
// after it was durable on the machine before.
func inOrder(numbers []uint64) string {
	for i := 1; i < len(numbers); i++ {
		if numbers[i-1] < numbers[i] {
			return "a write is there and the one that it depends on is not"
		}
	}
	if numbers[0]-numbers[len(numbers)-1] > 1 {
		return "the machines are apart by more than was under way"
	}
	return ""
}
