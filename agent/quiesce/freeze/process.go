//go:build linux

package freeze

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Requests to the guard, of requestSize bytes: kind, duration.
type requestKind uint8

const (
	requestFreeze requestKind = 1 // within the duration all is thawed again
	requestHold   requestKind = 2 // from now on the duration counts
	requestThaw   requestKind = 3
)

type request struct {
	kind     requestKind
	duration time.Duration
}

const requestSize = 9

func writeRequest(w io.Writer, r request) error {
	b := [requestSize]byte{byte(r.kind)}
	binary.LittleEndian.PutUint64(b[1:], uint64(r.duration))
	_, err := w.Write(b[:])
	return err
}

// Answers of the guard, of answerSize bytes.
type answerKind uint8

const (
	answerReady  answerKind = 1
	answerBegin  answerKind = 2 // a file system will be frozen now
	answerUnable answerKind = 3 // it cannot be frozen, and is left out
	answerFailed answerKind = 4 // it could not be frozen
	answerAll    answerKind = 5 // all are frozen
	answerHeld   answerKind = 6
	answerThawed answerKind = 7 // nothing is frozen any more; the last word
)

// Why the guard has thawed.
type reason uint8

const (
	reasonOrder  reason = 1
	reasonLimit  reason = 2
	reasonFailed reason = 3 // one could not be frozen
	reasonAlone  reason = 4 // the agent is gone
)

type answer struct {
	kind   answerKind
	reason reason
	index  uint16
	errno  uint16
	took   time.Duration
}

const answerSize = 14

func (a answer) encode(b *[answerSize]byte) {
	b[0], b[1] = byte(a.kind), byte(a.reason)
	binary.LittleEndian.PutUint16(b[2:], a.index)
	binary.LittleEndian.PutUint16(b[4:], a.errno)
	binary.LittleEndian.PutUint64(b[6:], uint64(a.took))
}

func readAnswer(r io.Reader) (answer, error) {
	var b [answerSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return answer{}, err
	}
	return answer{
		kind: answerKind(b[0]), reason: reason(b[1]), index: binary.LittleEndian.Uint16(b[2:]),
		errno: binary.LittleEndian.Uint16(b[4:]), took: time.Duration(binary.LittleEndian.Uint64(b[6:])),
	}, nil
}

// Open files of the guard.
const (
	guardIn   = 3
	guardOut  = 4
	guardDirs = 5 // and all that follow
)

const oomNever = "-1000"

// guard is the process that freezes and thaws. From the first freezing on it opens
// nothing, logs nothing and needs no new memory.
type guard struct {
	dirs []int
	wake int           // an eventfd: ended has changed
	done chan struct{} // closed when nothing is being frozen any more

	mu     sync.Mutex
	began  time.Time
	frozen []bool
	ended  bool // nothing may stay frozen
	why    answer
}

// Guard is the guard process. It ends when nothing is frozen any more.
func Guard() error {
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE, syscall.SIGTTOU)
	g := &guard{done: make(chan struct{})}
	for fd := guardDirs; fd < guardDirs+maxSets; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			break
		}
		g.dirs = append(g.dirs, fd)
	}
	if len(g.dirs) == 0 {
		return errors.New("freeze-guard is started by the agent alone")
	}
	g.frozen = make([]bool, len(g.dirs))
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte(oomNever), 0) // without the right to it, it is as likely as others to be killed
	comeFirst()
	var err error
	if g.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
		return err
	}
	var locked syscall.Errno
	errors.As(errors.Join(LockMemory(), lockCode()), &locked)
	start := make(chan struct{})
	go func() {
		runtime.LockOSThread() // a thread that is there already when it is needed
		defer close(g.done)
		if _, ok := <-start; ok {
			g.freeze()
		}
	}()
	debug.SetGCPercent(-1)
	// What will be called is called once, on nothing, so that its memory is there.
	_, _ = freeze(-1), thaw(-1)
	_ = g.over()
	g.say(answer{kind: answerReady, errno: uint16(locked)})
	g.serve(start)
	<-g.done
	g.say(g.why)
	return nil
}

// serve obeys the agent until all is thawed.
func (g *guard) serve(start chan struct{}) {
	var deadline time.Time
	begun := false
	poll := []unix.PollFd{{Fd: guardIn, Events: unix.POLLIN}, {Fd: int32(g.wake), Events: unix.POLLIN}}
	var b [requestSize]byte
	for !g.over() {
		wait := -1
		if begun {
			wait = max(int(time.Until(deadline)/time.Millisecond), 0) // rounded down: never too late
		}
		n, err := unix.Poll(poll, wait)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			g.end(answer{reason: reasonAlone})
			continue
		case n == 0:
			g.end(answer{reason: reasonLimit})
			continue
		case poll[1].Revents != 0: // one could not be frozen
			continue
		}
		if n, err := unix.Read(guardIn, b[:]); err != nil || n != requestSize { // the agent writes all at once
			g.end(answer{reason: reasonAlone})
			continue
		}
		duration := time.Duration(binary.LittleEndian.Uint64(b[1:]))
		switch requestKind(b[0]) {
		case requestFreeze:
			if !begun {
				begun, deadline = true, time.Now().Add(duration)
				start <- struct{}{}
			}
		case requestHold:
			deadline = time.Now().Add(duration)
			g.say(answer{kind: answerHeld})
		default:
			g.end(answer{reason: reasonOrder})
		}
	}
	close(start)
}

// freeze freezes one file system after the other.
func (g *guard) freeze() {
	g.mu.Lock()
	g.began = time.Now()
	g.mu.Unlock()
	for i, fd := range g.dirs {
		if g.over() {
			return
		}
		g.say(answer{kind: answerBegin, index: uint16(i)})
		err := freeze(fd)
		g.mu.Lock()
		if err == nil && g.ended { // it hung, and its time was up
			var errno syscall.Errno
			if errors.As(thaw(fd), &errno) && g.why.errno == 0 {
				g.why.index, g.why.errno = uint16(i), uint16(errno)
			}
			g.why.took = time.Since(g.began)
			g.mu.Unlock()
			return
		}
		g.frozen[i] = err == nil
		g.mu.Unlock()
		var errno syscall.Errno
		switch errors.As(err, &errno); errno {
		case 0:
		case unix.EOPNOTSUPP, unix.ENOTTY:
			g.say(answer{kind: answerUnable, index: uint16(i), errno: uint16(errno)})
		default:
			g.say(answer{kind: answerFailed, index: uint16(i), errno: uint16(errno)})
			g.end(answer{reason: reasonFailed, index: uint16(i), errno: uint16(errno)})
			_, _ = unix.Write(g.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
			return
		}
	}
	g.say(answer{kind: answerAll})
}

// end thaws all in reverse order, once.
func (g *guard) end(why answer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended {
		return
	}
	g.ended = true
	why.kind = answerThawed
	for i, fd := range slices.Backward(g.dirs) {
		if !g.frozen[i] {
			continue
		}
		var errno syscall.Errno
		if err := thaw(fd); errors.As(err, &errno) && why.errno == 0 {
			why.index, why.errno = uint16(i), uint16(errno)
		}
		g.frozen[i] = false
	}
	if !g.began.IsZero() {
		why.took = time.Since(g.began)
	}
	g.why = why
}

func (g *guard) over() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ended
}

// say answers; an agent that does not read any more is dead.
func (g *guard) say(a answer) {
	var b [answerSize]byte
	a.encode(&b)
	_, _ = unix.Write(guardOut, b[:])
}

// The ioctls of linux/fs.h: _IOWR('X', 119, int) and _IOWR('X', 120, int).
const (
	fiFreeze = 0xC0045877
	fiThaw   = 0xC0045878
)

func freeze(fd int) error { return unix.IoctlSetInt(fd, fiFreeze, 0) }

func thaw(fd int) error { return unix.IoctlSetInt(fd, fiThaw, 0) }
