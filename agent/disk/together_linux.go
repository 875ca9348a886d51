package disk

import (
	"errors"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Many reads at once go through the kernel's asynchronous I/O (io_submit(2)): one call
// hands them over and one takes what they came to. One after the other, even on several
// threads, they cost the guest four times the processor. Every kernel that the agent
// runs on has it; io_uring many do not, or it is forbidden.

const (
	// atOnce is how many reads of one call are under way at most.
	atOnce = 64
	// maxQueues is how many such calls are under way in this process; others wait.
	maxQueues = 4

	commandRead = 0 // IOCB_CMD_PREAD; linux/aio_abi.h, as what follows
)

// command is struct iocb on little-endian processors.
type command struct {
	id     uint64
	_      [2]uint32 // aio_key, aio_rw_flags
	code   uint16
	_      int16 // aio_reqprio
	file   uint32
	buffer uint64
	length uint64
	offset int64
	_      uint64
	_      [2]uint32 // aio_flags, aio_resfd
}

// event is struct io_event.
type event struct {
	id     uint64
	_      uint64
	result int64 // bytes, or a negative error number
	_      int64
}

// queue is a place for reads in the kernel. It lives as long as the process.
type queue struct {
	context  uintptr // 0: there is none
	commands [atOnce]command
	pointers [atOnce]*command
	events   [atOnce]event
}

// queues are those that nobody uses.
var queues = func() chan *queue {
	c := make(chan *queue, maxQueues)
	for range maxQueues {
		c <- &queue{}
	}
	return c
}()

// together reads at most atOnce pieces at once and says which were read as a whole.
// When it returns none is under way.
func (d *Disk) together(pieces []Piece) (read [atOnce]bool) {
	q := <-queues
	defer func() { queues <- q }()
	if !q.open() {
		return read
	}
	for i, p := range pieces {
		q.pointers[i] = &q.commands[i]
		q.commands[i] = command{
			id: uint64(i), code: commandRead, file: uint32(d.file.Fd()), offset: p.Offset, length: uint64(len(p.Data)),
			buffer: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p.Data)))), //nolint:gosec // how the kernel wants it; kept alive below
		}
	}
	given, done := 0, 0
	take := func(least int) {
		for _, e := range q.wait(least) {
			read[e.id] = e.result == int64(len(pieces[e.id].Data))
			done++
		}
	}
	for given < len(pieces) {
		n := q.submit(q.pointers[given:len(pieces)])
		given += n
		if n > 0 {
			continue
		}
		if given == done || q.context == 0 {
			break // not one is taken, though nothing is in its way
		}
		take(1)
	}
	for done < given && q.context != 0 {
		take(given - done)
	}
	runtime.KeepAlive(pieces)
	runtime.KeepAlive(d)
	return read
}

// open makes the kernel's part, if there is none, and reports whether there is one. The
// system bounds how many there are (fs.aio-max-nr).
func (q *queue) open() bool {
	if q.context == 0 {
		_, _, err := unix.Syscall(unix.SYS_IO_SETUP, atOnce, uintptr(unsafe.Pointer(&q.context)), 0) //nolint:gosec // the kernel's interface
		return err == 0
	}
	return true
}

// submit gives reads to the kernel and says how many of them it took.
func (q *queue) submit(commands []*command) int {
	n, _, err := unix.Syscall(unix.SYS_IO_SUBMIT, q.context, uintptr(len(commands)), uintptr(unsafe.Pointer(unsafe.SliceData(commands)))) //nolint:gosec // the kernel's interface
	if err != 0 {
		return 0
	}
	return int(n) //nolint:gosec // at most atOnce
}

// wait waits until so many reads are done, and gives all that are.
func (q *queue) wait(least int) []event {
	for {
		n, _, err := unix.Syscall6(unix.SYS_IO_GETEVENTS, q.context, uintptr(least), atOnce, uintptr(unsafe.Pointer(&q.events)), 0, 0) //nolint:gosec // the kernel's interface
		switch {
		case err == 0:
			return q.events[:n]
		case !errors.Is(err, unix.EINTR):
			// It cannot be. Destroying it waits for all that is under way.
			_, _, _ = unix.Syscall(unix.SYS_IO_DESTROY, q.context, 0, 0)
			q.context = 0
			return nil
		}
	}
}
