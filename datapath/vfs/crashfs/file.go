package crashfs

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"syscall"

	"drover/datapath/vfs"
)

// OpenFile takes the flags of package os, but for O_APPEND.
func (f *FS) OpenFile(path string, flag int, _ fs.FileMode) (vfs.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.find("open", path)
	if errors.Is(err, fs.ErrNotExist) && flag&os.O_CREATE != 0 {
		if n, err = f.create(path); err != nil {
			return nil, err
		}
		return &file{fs: f, n: n, path: path, flag: flag}, nil
	}
	if err != nil {
		return nil, err
	}
	op := Read
	switch {
	case flag&os.O_EXCL != 0:
		return nil, &fs.PathError{Op: "open", Path: path, Err: syscall.EEXIST}
	case n.dir:
		return nil, &fs.PathError{Op: "open", Path: path, Err: syscall.EISDIR}
	case flag&os.O_TRUNC != 0:
		op = Write
	}
	if _, err := f.begin(op, path); err != nil {
		return nil, err
	}
	if flag&os.O_TRUNC != 0 {
		f.used -= n.allocated()
		n.resize(0)
	}
	return &file{fs: f, n: n, path: path, flag: flag}, nil
}

func (f *FS) create(path string) (*node, error) {
	dir, name, err := f.walk("open", path)
	if err == nil {
		_, err = f.begin(Name, path)
	}
	if err != nil {
		return nil, err
	}
	return f.add(dir, name, false), nil
}

// file is an open file.
type file struct {
	fs     *FS
	n      *node
	path   string
	flag   int
	at     int64 // of Write
	closed bool
}

var _ vfs.File = (*file)(nil)

func (o *file) fail(op Op, err error) error {
	return &fs.PathError{Op: string(op), Path: o.path, Err: err}
}

// begin lets a call on the file go on; mu is held.
func (o *file) begin(op Op) (*Rule, error) {
	switch {
	case o.closed:
		return nil, o.fail(op, fs.ErrClosed)
	case op == Write && o.flag&(os.O_WRONLY|os.O_RDWR) == 0:
		return nil, o.fail(op, syscall.EBADF)
	}
	return o.fs.begin(op, o.path)
}

func (o *file) Name() string { return o.path }

func (o *file) Chmod(fs.FileMode) error { return nil }

func (o *file) Stat() (vfs.Info, error) {
	o.fs.mu.Lock()
	defer o.fs.mu.Unlock()
	if o.closed {
		return vfs.Info{}, o.fail(Read, fs.ErrClosed)
	}
	return o.n.info(), nil
}

func (o *file) Close() error {
	o.fs.mu.Lock()
	defer o.fs.mu.Unlock()
	if o.closed {
		return o.fail("close", fs.ErrClosed)
	}
	o.closed = true
	if o.n.holder == o {
		o.n.holder = nil
	}
	return nil
}

func (o *file) TryLock() (bool, error) {
	o.fs.mu.Lock()
	defer o.fs.mu.Unlock()
	if o.closed {
		return false, o.fail("lock", fs.ErrClosed)
	}
	if o.n.holder == nil {
		o.n.holder = o
	}
	return o.n.holder == o, nil
}

func (o *file) ReadAt(b []byte, offset int64) (int, error) {
	o.fs.mu.Lock()
	defer o.fs.mu.Unlock()
	rule, err := o.begin(Read)
	if err != nil {
		return 0, err
	}
	if offset >= o.n.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(b)), o.n.size-offset))
	for done := 0; done < n; {
		at, in := (offset+int64(done))/pageSize, (offset+int64(done))%pageSize
		part := b[done:min(n, done+int(pageSize-in))]
		if page, ok := o.n.pages[at]; ok {
			copy(part, page[in:])
		} else {
			clear(part)
		}
		done += len(part)
	}
	if rule != nil && rule.Flip && n > 0 {
		b[n/2] ^= 1
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (o *file) Write(b []byte) (int, error) {
	n, err := o.WriteAt(b, o.at)
	o.at += int64(n)
	return n, err
}

func (o *file) WriteAt(b []byte, offset int64) (int, error) {
	o.fs.mu.Lock()
	defer o.fs.mu.Unlock()
	rule, err := o.begin(Write)
	if rule != nil && rule.Short {
		n, _ := o.write(b[:len(b)/2], offset)
		return n, err
	}
	if err != nil {
		return 0, err
	}
	return o.write(b, offset)
}

func (o *file) write(b []byte, offset int64) (done int, err error) {
	for done < len(b) {
		at, in := (offset+int64(done))/pageSize, (offset+int64(done))%pageSize
		n := min(len(b)-done, int(pageSize-in))
		old, ok := o.n.pages[at]
		if !ok {
			if o.fs.capacity > 0 && o.fs.used+pageSize > o.fs.capacity {
				return done, o.fail(Write, syscall.ENOSPC)
			}
			o.fs.used += pageSize
			old = make([]byte, pageSize)
		}
		page := bytes.Clone(old)
		copy(page[in:], b[done:done+n])
		o.n.set(at, page)
		done += n
		if end := offset + int64(done); end > o.n.size {
			o.n.resize(end)
		}
	}
	o.n.modified = o.fs.clock
	return done, nil
}

func (o *file) Truncate(size int64) error {
	o.fs.mu.Lock()
	defer o.fs.mu.Unlock()
	if _, err := o.begin(Write); err != nil {
		return err
	}
	before := o.n.allocated()
	o.n.resize(size)
	o.n.modified = o.fs.clock
	o.fs.used += o.n.allocated() - before
	return nil
}

func (o *file) PunchHole(offset, length int64) error {
	o.fs.mu.Lock()
	defer o.fs.mu.Unlock()
	if _, err := o.begin(Write); err != nil {
		return err
	}
	before := o.n.allocated()
	for end := min(offset+length, o.n.size+pageSize); offset < end; {
		at := offset / pageSize
		to := min(end, (at+1)*pageSize)
		o.n.clearRange(at, offset-at*pageSize, to-at*pageSize)
		offset = to
	}
	o.n.modified = o.fs.clock
	o.fs.used += o.n.allocated() - before
	return nil
}

func (o *file) NextData(offset int64) (from, to int64, err error) {
	o.fs.mu.Lock()
	defer o.fs.mu.Unlock()
	if _, err := o.begin(Read); err != nil {
		return 0, 0, err
	}
	for from = offset; from < o.n.size; from = (from/pageSize + 1) * pageSize {
		if _, ok := o.n.pages[from/pageSize]; !ok {
			continue
		}
		to = from
		for ok := true; ok && to < o.n.size; _, ok = o.n.pages[to/pageSize] {
			to = (to/pageSize + 1) * pageSize
		}
		return from, min(to, o.n.size), nil
	}
	return 0, 0, io.EOF
}

func (o *file) Sync() error {
	o.fs.mu.Lock()
	defer o.fs.mu.Unlock()
	rule, err := o.begin(Sync)
	if rule != nil && err != nil {
		o.n.lose(rand.New(rand.NewPCG(o.n.ino, uint64(o.fs.calls))))
	}
	if err != nil {
		return err
	}
	o.n.sync()
	return nil
}
