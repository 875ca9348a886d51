package ebpf

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"

	"drover/agent/tracker/changes"
	"drover/tests/loop"
)

// child is what a process that the test starts is told by its environment.
const child = "DROVER_TEST_EBPF_CHILD"

type childTask struct {
	Dir    string
	Device changes.Device
}

func TestMain(m *testing.M) {
	if task := os.Getenv(child); task != "" {
		fmt.Fprintln(os.Stderr, runChild(task))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// runChild follows a disk and drains into memory that outlives it, until it is killed.
func runChild(text string) error {
	var task childTask
	if err := json.Unmarshal([]byte(text), &task); err != nil {
		return err
	}
	s, err := Open(task.Dir)
	if err != nil {
		return err
	}
	if _, err := s.Follow([]changes.Device{task.Device}); err != nil {
		return err
	}
	mem, _, err := s.Memory(0, "dirty", 8*changes.Words(task.Device.Size))
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for {
		if err := s.Drain(0, asBitmap(mem)); err != nil {
			return err
		}
	}
}

func asBitmap(mem []byte) changes.Bitmap {
	return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(mem))), len(mem)/8)
}

// startChild starts a process that follows, and waits until it does.
func startChild(t *testing.T, dir string, d *loop.Device) *exec.Cmd {
	t.Helper()
	task, err := json.Marshal(childTask{dir, device(d)})
	require.NoError(t, err)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), child+"="+string(task))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // if the test has not
	line := make([]byte, len("ready\n"))
	_, err = out.Read(line)
	require.NoError(t, err, "the child has begun")
	return cmd
}

func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
}

// TestRestart holds that writes are seen that come while no process follows.
func TestRestart(t *testing.T) {
	dir := bpffs(t)
	d := loop.New(t, 32*mega)
	s := open(t, dir)
	require.Equal(t, []bool{false}, follow(t, s, d))
	mem, kept, err := s.Memory(0, "notes", 1000)
	require.NoError(t, err)
	require.False(t, kept)
	require.Equal(t, make([]byte, 1000), mem)
	copy(mem, "what is known")
	require.NoError(t, d.Write(4096, ones(4096)))
	require.NoError(t, s.Close())

	require.NoError(t, d.Write(5*4096, ones(4096)))
	require.NoError(t, d.Discard(8*4096, 4096))
	s = open(t, dir)
	require.Equal(t, []bool{true}, follow(t, s, d))
	b := drained(t, s, 0)
	covers(t, b, []int64{1, 5, 8})
	require.Equal(t, int64(3), b.Count())
	mem, kept, err = s.Memory(0, "notes", 1000)
	require.NoError(t, err)
	require.True(t, kept)
	require.Equal(t, "what is known", string(mem[:13]))
	_, kept, err = s.Memory(0, "other", 8)
	require.NoError(t, err)
	require.False(t, kept)
	noGap(t, s)
}

// TestHugeRangeBetweenProcesses holds that what lies in the ring is not lost either.
func TestHugeRangeBetweenProcesses(t *testing.T) {
	dir := bpffs(t)
	d := loop.New(t, 256*mega)
	s := open(t, dir)
	follow(t, s, d)
	require.NoError(t, s.Close())
	require.NoError(t, d.Discard(4096, 200*mega))
	s = open(t, dir)
	require.Equal(t, []bool{true}, follow(t, s, d))
	require.Equal(t, int64(200*mega/4096), drained(t, s, 0).Count())
}

// TestKilled kills a process that drains, again and again, while others write.
func TestKilled(t *testing.T) {
	dir := bpffs(t)
	d := loop.New(t, 32*mega)
	r, before := loop.NewReplica(t, d), d.Snapshot()
	written := make(chan error, 1)
	killed := 0
	for round := range uint64(3) {
		cmd := startChild(t, dir, d)
		go func() { written <- d.WriteAtRandom(round, 150) }()
		time.Sleep(time.Duration(10+20*round) * time.Millisecond) // any time will do
		kill(t, cmd)
		killed++
		require.NoError(t, <-written)
		s := open(t, dir)
		require.Equal(t, []bool{true}, follow(t, s, d))
		mem, kept, err := s.Memory(0, "dirty", 8*changes.Words(d.Size))
		require.NoError(t, err)
		require.True(t, kept)
		b := asBitmap(mem)
		require.NoError(t, s.Drain(0, b))
		covers(t, b, d.Changed(before))
		r.Take(b)
		require.Empty(t, r.Differs())
		clear(b)
		noGap(t, s)
		require.NoError(t, s.Close())
	}
	require.Equal(t, 3, killed)
}

// TestOneProcessAtATime holds that two processes never drain the same pins.
func TestOneProcessAtATime(t *testing.T) {
	dir := bpffs(t)
	d := loop.New(t, mega)
	cmd := startChild(t, dir, d)
	_, err := Open(dir)
	require.ErrorContains(t, err, fmt.Sprintf("process %d", cmd.Process.Pid))
	require.ErrorContains(t, Unpin(dir), "there can be only one")
	kill(t, cmd)
	s := open(t, dir)
	require.Equal(t, []bool{true}, follow(t, s, d))
}

// TestOtherFormat holds that the pins of another agent's programs are replaced, and
// nothing is taken from them.
func TestOtherFormat(t *testing.T) {
	dir := bpffs(t)
	d := loop.New(t, mega)
	for name, spoil := range map[string]func(s *Source){
		"format": func(s *Source) { s.programs.kept.format-- },
		"half":   func(*Source) { require.NoError(t, os.Remove(filepath.Join(dir, "link-issue"))) },
		"disk":   func(s *Source) { s.disks[0].seq++ },
		"gone":   func(s *Source) { require.NoError(t, s.programs.remove(s.disks[0].number)) },
	} {
		s := open(t, dir)
		require.Equal(t, []bool{false}, follow(t, s, d), name)
		mem, _, err := s.Memory(0, "notes", 8)
		require.NoError(t, err)
		mem[0] = 1
		spoil(s)
		require.NoError(t, s.Close())
		s = open(t, dir)
		require.Equal(t, []bool{false}, follow(t, s, d), name)
		mem, kept, err := s.Memory(0, "notes", 8)
		require.NoError(t, err)
		require.False(t, kept, name)
		require.Zero(t, mem[0], name)
		require.NoError(t, d.Write(4096, ones(512)))
		require.True(t, drained(t, s, 0).Has(1), name)
		require.NoError(t, s.Close())
		require.NoError(t, Unpin(dir))
	}
}

// TestDisksComeAndGo holds that the others go on without a gap.
func TestDisksComeAndGo(t *testing.T) {
	for _, dir := range []string{"", bpffs(t)} {
		a, b, c := loop.New(t, mega), loop.New(t, 2*mega), loop.New(t, mega)
		s := open(t, dir)
		require.Equal(t, []bool{false, false}, follow(t, s, a, b))
		require.NoError(t, b.Write(4096, ones(512)))
		require.Equal(t, []bool{false, true}, follow(t, s, c, b))
		require.NoError(t, b.Write(2*4096, ones(512)))
		require.NoError(t, c.Write(3*4096, ones(512)))
		require.NoError(t, a.Write(4*4096, ones(512)))
		covers(t, drained(t, s, 1), []int64{1, 2})
		covers(t, drained(t, s, 0), []int64{3})
		require.NoError(t, b.Write(5*4096, ones(512)))
		require.Equal(t, []bool{true, false}, follow(t, s, b, a))
		covers(t, drained(t, s, 0), []int64{5})
		settle(t, s, 1)
		require.Zero(t, drained(t, s, 1).Count(), "followed anew")
		all, err := s.programs.all()
		require.NoError(t, err)
		require.Len(t, all, 2)
		if dir == "" {
			require.NoError(t, s.Close())
			continue
		}
		require.NoError(t, b.Write(6*4096, ones(512)))
		require.NoError(t, s.Close())
		s = open(t, dir)
		require.Equal(t, []bool{true, false}, follow(t, s, b, c), "a is followed no longer")
		covers(t, drained(t, s, 0), []int64{6})
		files, err := filepath.Glob(filepath.Join(dir, "disk-*"))
		require.NoError(t, err)
		require.Len(t, files, 2)
		require.Empty(t, follow(t, s))
		files, err = filepath.Glob(filepath.Join(dir, "disk-*"))
		require.NoError(t, err)
		require.Empty(t, files)
	}
}

// TestUnpin holds that an agent that is uninstalled leaves nothing.
func TestUnpin(t *testing.T) {
	dir := bpffs(t)
	require.NoError(t, Unpin(dir), "nothing is there")
	d := loop.New(t, mega)
	s := open(t, dir)
	follow(t, s, d)
	_, _, err := s.Memory(0, "notes", 8)
	require.NoError(t, err)
	require.ErrorContains(t, Unpin(dir), "tracked by process")
	require.NoError(t, s.Close())
	require.NoError(t, Unpin(dir))
	require.NoDirExists(t, dir)
}

// TestNoPlaceToPin holds that the source works, and says why it ends with the process.
func TestNoPlaceToPin(t *testing.T) {
	need(t)
	s, err := Open(filepath.Join(t.TempDir(), "drover"))
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	require.Contains(t, s.Unpinned(), "mount -t bpf")
	d := loop.New(t, mega)
	require.Equal(t, []bool{false}, follow(t, s, d))
	mem, kept, err := s.Memory(0, "notes", 10)
	require.NoError(t, err)
	require.False(t, kept)
	mem[9] = 1
	mem, kept, err = s.Memory(0, "notes", 10)
	require.NoError(t, err)
	require.True(t, kept)
	require.Equal(t, byte(1), mem[9])
	_, _, err = s.Memory(0, "notes", 11)
	require.ErrorContains(t, err, "10 bytes, not 11")
	require.NoError(t, d.Write(4096, ones(512)))
	require.True(t, drained(t, s, 0).Has(1))
}
