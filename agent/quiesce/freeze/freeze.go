//go:build linux

package freeze

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"drover/datapath/failpoint"
)

// Bounds.
const (
	// grace is how much longer than its limit the guard may take to say that all is
	// thawed, before the agent does it.
	grace = 2 * time.Second
	// startLimit bounds how long a guard takes to be ready.
	startLimit = 10 * time.Second
	// syncRounds bounds how often the file systems are written out before they are
	// frozen, and syncPart the part of the limit that the last time may take.
	syncRounds = 4
	syncPart   = 2
	// syncSoon is when there is no use in another time.
	syncSoon = 20 * time.Millisecond
	maxSets  = 256 // file systems
)

// Frozen is one freeze from its preparation on. Until Close all its file systems are
// open.
type Frozen struct {
	set   *Set
	limit time.Duration
	dirs  []*os.File
	cmd   *exec.Cmd
	in    *os.File // to the guard
	out   *os.File
	done  chan struct{} // closed when the guard has ended and nothing of it is frozen

	released sync.Once

	mu      sync.Mutex
	began   []bool // by file system: may be frozen
	missing []int  // those that cannot be frozen
	answers chan answer
	end     *answer // the guard's last word
}

// Prepare opens the file systems and starts the guard; nothing is frozen yet.
func (f *Freezer) Prepare(ctx context.Context, set *Set) (*Frozen, error) {
	if f.last != nil {
		select {
		case <-f.last.done:
		default:
			return nil, errors.New("freeze: an earlier freeze has not ended yet: a file system hangs")
		}
	}
	if len(set.FileSystems) == 0 || len(set.FileSystems) > maxSets {
		return nil, fmt.Errorf("freeze: %d file systems, want 1 to %d", len(set.FileSystems), maxSets)
	}
	z := &Frozen{set: set, limit: f.MaxTime(), done: make(chan struct{}), began: make([]bool, len(set.FileSystems)), answers: make(chan answer, 3*maxSets)}
	err := z.open()
	if err == nil {
		err = z.start(f.Guard)
	}
	if err == nil {
		err = z.ready(ctx)
	}
	if err != nil {
		z.Close()
		return nil, fmt.Errorf("freeze: start the guard: %w", err)
	}
	f.last = z
	return z, nil
}

// open opens each file system by one of its mounts.
func (z *Frozen) open() error {
	for _, fs := range z.set.FileSystems {
		dir, err := fs.open()
		if err != nil {
			return err
		}
		z.dirs = append(z.dirs, dir)
	}
	return nil
}

func (z *Frozen) start(command []string) error {
	if len(command) == 0 {
		command = []string{"/proc/self/exe", Verb}
	}
	theirIn, in, err := os.Pipe()
	if err != nil {
		return err
	}
	out, theirOut, err := os.Pipe()
	if err != nil {
		return errors.Join(err, theirIn.Close(), in.Close())
	}
	z.in, z.out = in, out
	cmd := exec.Command(command[0], command[1:]...) //nolint:gosec // this program itself
	cmd.ExtraFiles = append([]*os.File{theirIn, theirOut}, z.dirs...)
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	if err = errors.Join(err, theirIn.Close(), theirOut.Close()); err != nil {
		return err
	}
	z.cmd = cmd
	go z.follow()
	return nil
}

// ready waits until the guard is.
func (z *Frozen) ready(ctx context.Context) error {
	a, err := z.await(ctx, startLimit, answerReady)
	if err == nil && a.errno != 0 {
		err = fmt.Errorf("lock its memory: %w; the agent must run as root, with CAP_IPC_LOCK and CAP_SYS_ADMIN", syscall.Errno(a.errno))
	}
	return err
}

// follow hands out what the guard says until it ends; what it has left frozen is
// thawed here.
func (z *Frozen) follow() {
	defer close(z.done)
	defer close(z.answers)
	for {
		a, err := readAnswer(z.out)
		if err != nil {
			break
		}
		z.note(a)
		z.answers <- a // there is room for all that it can say
	}
	_ = z.cmd.Wait() // how it ended does not matter: what it said does
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.end == nil {
		z.thawSelf()
	}
}

// note keeps what is known of each file system.
func (z *Frozen) note(a answer) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if i := int(a.index); i < len(z.began) {
		switch a.kind {
		case answerBegin:
			z.began[i] = true
		case answerUnable:
			z.began[i] = false
			z.missing = append(z.missing, i)
		case answerFailed:
			z.began[i] = false
		}
	}
	if a.kind == answerThawed {
		z.end = &a
	}
}

// thawSelf thaws what a guard that was killed may have left; mu is held.
func (z *Frozen) thawSelf() {
	for i, dir := range slices.Backward(z.dirs) {
		if z.began[i] {
			_ = thaw(int(dir.Fd())) // EINVAL: it was not frozen
			z.began[i] = false
		}
	}
}

// await waits until the guard says so, or that it has ended.
func (z *Frozen) await(ctx context.Context, limit time.Duration, want answerKind) (answer, error) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		select {
		case a, ok := <-z.answers:
			switch {
			case !ok:
				return a, errors.New("the guard process was killed")
			case a.kind == want:
				return a, nil
			case a.kind == answerThawed:
				return a, z.cause(a)
			}
		case <-timer.C:
			return answer{}, fmt.Errorf("the guard process does not answer within %s", limit)
		case <-ctx.Done():
			return answer{}, ctx.Err()
		}
	}
}

// cause says why the guard has thawed without an order, or what it found when it did.
func (z *Frozen) cause(a answer) error {
	name := ""
	if int(a.index) < len(z.set.FileSystems) {
		name = z.set.FileSystems[a.index].Point
	}
	errno := syscall.Errno(a.errno)
	switch a.reason {
	case reasonOrder:
		switch errno {
		case 0:
			return nil
		case unix.EINVAL:
			return fmt.Errorf("%s was thawed by another program", name)
		}
		return fmt.Errorf("thaw %s: %w", name, errno)
	case reasonLimit:
		return fmt.Errorf("%w of %s", ErrLimit, z.limit)
	case reasonFailed:
		if errno == unix.EBUSY {
			return fmt.Errorf("freeze %s: %w", name, ErrBusy)
		}
		return fmt.Errorf("freeze %s: %w", name, errno)
	}
	return errors.New("the guard process lost the agent")
}

// Settle writes the file systems out while they still work, so that freezing them has
// little to write. It fails when that takes so long that the limit would be passed.
func (z *Frozen) Settle(ctx context.Context) error {
	var took time.Duration
	for range syncRounds {
		begin := time.Now()
		for i, dir := range z.dirs {
			if err := unix.Syncfs(int(dir.Fd())); err != nil {
				return fmt.Errorf("sync %s: %w", z.set.FileSystems[i].Point, err)
			}
		}
		took = time.Since(begin)
		if ctx.Err() != nil || took < syncSoon {
			return ctx.Err()
		}
	}
	if took > z.limit/syncPart {
		return fmt.Errorf("writing out what the file systems hold took %s, too long for a freeze of at most %s", took.Round(time.Millisecond), z.limit)
	}
	return nil
}

// Freeze freezes all file systems in order. After an error none is frozen, but for
// those whose freezing hangs; these are thawed as soon as it ends.
func (z *Frozen) Freeze(ctx context.Context) error {
	if err := writeRequest(z.in, request{requestFreeze, z.limit}); err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	failpoint.Hit(failpoint.FreezeBegun)
	if _, err := z.await(ctx, z.limit+grace, answerAll); err != nil {
		z.Close()
		return fmt.Errorf("freeze: %w", err)
	}
	return nil
}

// Missing are the file systems that cannot be frozen, known after Freeze.
func (z *Frozen) Missing() (out []FileSystem) {
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, i := range z.missing {
		out = append(out, z.set.FileSystems[i])
	}
	return out
}

// Hold lets the file systems stay frozen for longer, from now on.
func (z *Frozen) Hold(limit time.Duration) error {
	if err := writeRequest(z.in, request{requestHold, limit}); err != nil {
		return fmt.Errorf("stay frozen: %w", err)
	}
	if _, err := z.await(context.Background(), grace, answerHeld); err != nil {
		return fmt.Errorf("stay frozen: %w", err)
	}
	return nil
}

// Thaw thaws in reverse order, and gives how long the first was frozen: from the
// begin of its freezing to the end of its thawing. An error says that the file systems
// were not frozen all the time, or are not thawed.
func (z *Frozen) Thaw() (time.Duration, error) {
	err := writeRequest(z.in, request{requestThaw, 0})
	failpoint.Hit(failpoint.ThawBegun)
	if errors.Is(err, unix.EPIPE) {
		err = nil // it has ended by itself; its last word says why
	}
	a, waited := z.await(context.Background(), grace, answerThawed)
	if waited == nil {
		err = errors.Join(err, z.cause(a))
	} else {
		err = errors.Join(err, waited)
	}
	z.Close()
	if err != nil {
		return a.took, fmt.Errorf("thaw: %w", err)
	}
	return a.took, nil
}

// Close ends the guard, which thaws what it holds, and lets go of the file systems.
// It waits for that, but not for a file system that hangs.
func (z *Frozen) Close() {
	if z.in != nil {
		_ = z.in.Close()
		z.in = nil
	}
	if z.cmd == nil {
		z.release()
		return
	}
	select {
	case <-z.done:
		z.release()
	case <-time.After(grace):
		go z.giveUp()
	}
}

// giveUp thaws instead of a guard that does not answer. It ends when no file system
// hangs any more.
func (z *Frozen) giveUp() {
	z.mu.Lock()
	z.thawSelf()
	z.mu.Unlock()
	_ = z.cmd.Process.Kill()
	<-z.done
	z.release()
}

func (z *Frozen) release() {
	z.released.Do(func() {
		for _, d := range z.dirs {
			_ = d.Close() // a directory, opened to be named
		}
		if z.out != nil {
			_ = z.out.Close()
		}
	})
}
