package freeze

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/tests/loop"
)

func TestFreezeAndThaw(t *testing.T) {
	for _, fstype := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(fstype, func(t *testing.T) {
			tool(t, "mkfs."+fstype)
			device, point := mounted(t, t.TempDir(), fstype)
			w := write(t, point)
			_, z := prepared(t, 10*time.Second, device)
			require.NoError(t, z.Settle(t.Context()))
			w.goesOn(t)
			begin := time.Now()
			require.NoError(t, z.Freeze(t.Context()))
			require.Empty(t, z.Missing())
			w.stands(t)
			least := time.Since(begin)
			took, err := z.Thaw()
			require.NoError(t, err)
			require.GreaterOrEqual(t, took, 50*time.Millisecond)
			require.LessOrEqual(t, took, least+wait)
			require.LessOrEqual(t, took, time.Since(begin))
			w.goesOn(t)
		})
	}
}

// TestLimit: the guard thaws by itself, and that is told.
func TestLimit(t *testing.T) {
	device, point := mounted(t, t.TempDir(), "ext4")
	w := write(t, point)
	_, z := prepared(t, time.Second, device)
	require.NoError(t, z.Freeze(t.Context()))
	w.goesOn(t)
	took, err := z.Thaw()
	require.ErrorIs(t, err, ErrLimit)
	require.ErrorContains(t, err, "1s")
	require.Less(t, took, wait)
	require.Greater(t, took, 900*time.Millisecond)
}

// TestHold: a final cut's freeze outlives the limit.
func TestHold(t *testing.T) {
	device, point := mounted(t, t.TempDir(), "ext4")
	w := write(t, point)
	const limit = time.Second
	_, z := prepared(t, limit, device)
	require.NoError(t, z.Freeze(t.Context()))
	require.NoError(t, z.Hold(wait))
	time.Sleep(limit + 100*time.Millisecond)
	w.stands(t)
	took, err := z.Thaw()
	require.NoError(t, err)
	require.Greater(t, took, limit)
	w.goesOn(t)
}

func TestHoldTooLate(t *testing.T) {
	device, _ := mounted(t, t.TempDir(), "ext4")
	_, z := prepared(t, 200*time.Millisecond, device)
	if err := z.Freeze(t.Context()); err != nil {
		require.ErrorIs(t, err, ErrLimit, "a slow machine")
		return
	}
	<-z.done
	require.Error(t, z.Hold(wait))
}

// TestSecondFails: one of three is frozen by somebody else. The first is thawed, the
// second is not touched.
func TestSecondFails(t *testing.T) {
	dir := t.TempDir()
	var devices, points []string
	for range 3 {
		d, p := mounted(t, dir, "ext4")
		devices, points = append(devices, d), append(points, p)
	}
	set := find(t, devices...)
	require.Len(t, set.FileSystems, 3)
	second := set.FileSystems[1].Point
	run(t, "fsfreeze", "--freeze", second)
	foreign := true
	t.Cleanup(func() {
		if foreign {
			run(t, "fsfreeze", "--unfreeze", second)
		}
	})
	f := &Freezer{}
	z, err := f.Prepare(t.Context(), set)
	require.NoError(t, err)
	err = z.Freeze(t.Context())
	require.ErrorIs(t, err, ErrBusy)
	require.ErrorContains(t, err, second)
	for _, p := range points {
		if p != second {
			write(t, p).goesOn(t)
		}
	}
	run(t, "fsfreeze", "--unfreeze", second) // fails if it is not frozen any more
	foreign = false
	z, err = f.Prepare(t.Context(), set)
	require.NoError(t, err)
	require.NoError(t, z.Freeze(t.Context()))
	_, err = z.Thaw()
	require.NoError(t, err)
}

// TestThawedByAnother is told.
func TestThawedByAnother(t *testing.T) {
	device, point := mounted(t, t.TempDir(), "ext4")
	_, z := prepared(t, wait, device)
	require.NoError(t, z.Freeze(t.Context()))
	run(t, "fsfreeze", "--unfreeze", point)
	_, err := z.Thaw()
	require.ErrorContains(t, err, "thawed by another program")
}

// start runs a victim until it has frozen.
func start(t *testing.T, limit time.Duration, devices ...string) (agent *exec.Cmd, guard int) {
	t.Helper()
	agent = exec.Command(os.Args[0], append([]string{victimVerb, limit.String()}, devices...)...)
	out, err := agent.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, agent.Start())
	lines := bufio.NewScanner(out)
	require.True(t, lines.Scan())
	guard, err = strconv.Atoi(lines.Text())
	require.NoError(t, err, lines.Text())
	require.True(t, lines.Scan())
	require.Equal(t, "frozen", lines.Text())
	return agent, guard
}

// kills is how often the agent is killed in a freeze; make kill-matrix has it 100 times.
var kills = flag.Int("kills", 10, "how often the agent is killed in a freeze")

// TestAgentKilledInTheFreeze: the guest goes on, each time, within the limit, that is
// long here so that it cannot be what helped.
func TestAgentKilledInTheFreeze(t *testing.T) {
	device, point := mounted(t, t.TempDir(), "ext4")
	w := write(t, point)
	var worst time.Duration
	for range *kills {
		agent, guard := start(t, 5*time.Minute, device)
		begin := time.Now()
		require.NoError(t, agent.Process.Signal(syscall.SIGKILL))
		w.goesOn(t)
		worst = max(worst, time.Since(begin))
		_ = agent.Wait() // killed
		gone(t, guard)
	}
	t.Logf("%d kills; the longest until the writer had written twice was %s", *kills, worst)
}

// gone waits until a process that is not our child has ended.
func gone(t *testing.T, pid int) {
	t.Helper()
	require.Eventually(t, func() bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) || zombie(pid) }, wait, time.Millisecond)
}

// zombie: nobody takes what became of it, which is the init's business.
func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, after, _ := strings.Cut(string(b), ") ")
	return err != nil || strings.HasPrefix(after, "Z")
}

// TestGuardKilled: the agent thaws, and no point is made.
func TestGuardKilled(t *testing.T) {
	device, point := mounted(t, t.TempDir(), "ext4")
	w := write(t, point)
	_, z := prepared(t, 5*time.Minute, device)
	require.NoError(t, z.Freeze(t.Context()))
	require.NoError(t, z.cmd.Process.Kill())
	w.goesOn(t)
	_, err := z.Thaw()
	require.ErrorContains(t, err, "the guard process was killed")
}

// TestGuardIgnoresPoliteSignals: a service manager that stops the agent sends them to
// all its processes.
func TestGuardIgnoresPoliteSignals(t *testing.T) {
	device, point := mounted(t, t.TempDir(), "ext4")
	w := write(t, point)
	_, z := prepared(t, wait, device)
	require.NoError(t, z.Freeze(t.Context()))
	for _, s := range []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		require.NoError(t, z.cmd.Process.Signal(s))
	}
	w.stands(t)
	_, err := z.Thaw()
	require.NoError(t, err)
}

// TestBothKilled: what is left frozen is thawed with what the marker says.
func TestBothKilled(t *testing.T) {
	dir := t.TempDir()
	device, point := mounted(t, dir, "ext4")
	other, _ := mounted(t, dir, "ext4")
	w := write(t, point)
	left := find(t, device, other).Left()
	agent, guard := start(t, 5*time.Minute, device, other)
	require.NoError(t, syscall.Kill(agent.Process.Pid, syscall.SIGSTOP)) // so that neither sees the other die
	require.NoError(t, syscall.Kill(guard, syscall.SIGKILL))
	require.NoError(t, agent.Process.Kill())
	_ = agent.Wait() // killed
	gone(t, guard)
	w.stands(t)
	n, err := Recover(left)
	require.NoError(t, err)
	require.Equal(t, 2, n)
	w.goesOn(t)
	n, err = Recover(left)
	require.NoError(t, err, "a second time")
	require.Zero(t, n)
	n, err = Recover([]Left{{Device: "7:4000", Points: []string{point, filepath.Join(dir, "none")}}})
	require.Error(t, err, "another file system is there now")
	require.Zero(t, n)
}

// TestAgentHangs: the guard does not wait for an agent that stands still.
func TestAgentHangs(t *testing.T) {
	device, point := mounted(t, t.TempDir(), "ext4")
	w := write(t, point)
	agent, guard := start(t, time.Second, device)
	require.NoError(t, agent.Process.Signal(syscall.SIGSTOP))
	w.goesOn(t)
	require.NoError(t, agent.Process.Kill())
	_ = agent.Wait() // killed
	gone(t, guard)
}

// TestFreezeThatHangs: the device under a file system does not take its data. What was
// frozen before goes on within the limit, the rest once the device does.
func TestFreezeThatHangs(t *testing.T) {
	dir := t.TempDir()
	lower, lowerPoint := mounted(t, dir, "ext4")
	first, firstPoint := mounted(t, dir, "ext4")
	image := sparse(t, lowerPoint, 32<<20)
	upper := loop.Attach(t, image).Path
	run(t, "mkfs.ext4", upper)
	point := t.TempDir()
	run(t, "mount", upper, point)
	t.Cleanup(func() { run(t, "umount", point) })
	set := find(t, upper)
	set.FileSystems = append(find(t, first).FileSystems, set.FileSystems...)
	require.Len(t, set.FileSystems, 2)

	w := write(t, firstPoint)
	require.NoError(t, os.WriteFile(filepath.Join(point, "dirty"), make([]byte, 1<<20), 0o600))
	run(t, "fsfreeze", "--freeze", lowerPoint)
	hangs := true
	t.Cleanup(func() {
		if hangs {
			run(t, "fsfreeze", "--unfreeze", lowerPoint)
		}
	})
	f := &Freezer{Limit: 200 * time.Millisecond}
	z, err := f.Prepare(t.Context(), set)
	require.NoError(t, err)
	require.ErrorContains(t, z.Freeze(t.Context()), "does not answer")
	w.goesOn(t)
	_, err = f.Prepare(t.Context(), set)
	require.ErrorContains(t, err, "an earlier freeze has not ended")

	run(t, "fsfreeze", "--unfreeze", lowerPoint)
	hangs = false
	write(t, point).goesOn(t)
	<-z.done
	z, err = f.Prepare(t.Context(), find(t, lower))
	require.NoError(t, err)
	z.Close()
}

// TestGuardThatHangs: the agent thaws when the guard does not answer.
func TestGuardThatHangs(t *testing.T) {
	device, point := mounted(t, t.TempDir(), "ext4")
	w := write(t, point)
	_, z := prepared(t, wait, device)
	require.NoError(t, z.Freeze(t.Context()))
	require.NoError(t, z.cmd.Process.Signal(syscall.SIGSTOP))
	_, err := z.Thaw()
	require.ErrorContains(t, err, "does not answer")
	w.goesOn(t)
}

// TestPreparedAndClosed: nothing is frozen, and the guard ends.
func TestPreparedAndClosed(t *testing.T) {
	device, point := mounted(t, t.TempDir(), "ext4")
	w := write(t, point)
	f, z := prepared(t, 0, device)
	pid := z.cmd.Process.Pid
	z.Close()
	z.Close()
	gone(t, pid)
	w.goesOn(t)
	_, err := f.Prepare(t.Context(), &Set{})
	require.ErrorContains(t, err, "0 file systems")
}

func TestAnswers(t *testing.T) {
	r, w := io.Pipe()
	want := answer{kind: answerThawed, reason: reasonLimit, index: 258, errno: 16, took: 1234567890123}
	go func() {
		var b [answerSize]byte
		want.encode(&b)
		_, _ = w.Write(b[:])
	}()
	got, err := readAnswer(r)
	require.NoError(t, err)
	require.Equal(t, want, got)
}
