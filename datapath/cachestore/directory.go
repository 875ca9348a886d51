package cachestore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"drover/datapath/durable"
	"drover/datapath/ident"
	"drover/datapath/vfs"
)

// Directory keeps change sets in a directory, which several processes may share.
//
//	<dir>/<machine id>/<sequence>-<epoch>.cs   an object
//	<dir>/<machine id>/fence                   the lowest epoch that may put
//	<dir>/<machine id>/lock                    held while putting or fencing
type Directory struct {
	fs  vfs.FS
	dir string
}

var _ Store = (*Directory)(nil)

const (
	objectSuffix = ".cs"
	objectFormat = "%020d-%020d"
	copyBuffer   = 1 << 20
	maxFence     = 32 // bytes of a fence file
)

// NewDirectory opens the directory, made when absent.
func NewDirectory(dir string) (*Directory, error) { return NewDirectoryFS(vfs.OS, dir) }

// NewDirectoryFS is NewDirectory on another file system.
func NewDirectoryFS(fsys vfs.FS, dir string) (*Directory, error) {
	if err := durable.MkdirAll(fsys, dir, 0o750); err != nil {
		return nil, fmt.Errorf("open the cache directory: %w", err)
	}
	return &Directory{fs: fsys, dir: dir}, nil
}

func (d *Directory) machine(m ident.MachineID) string { return filepath.Join(d.dir, m.String()) }

func (d *Directory) path(n Name) string {
	return filepath.Join(d.machine(n.Machine), fmt.Sprintf(objectFormat, n.Seq, n.Epoch)+objectSuffix)
}

// locked runs f while no other process puts or fences for the machine.
func (d *Directory) locked(ctx context.Context, m ident.MachineID, f func() error) (err error) {
	if err := d.fs.MkdirAll(d.machine(m), 0o750); err != nil {
		return err
	}
	lock, err := d.fs.OpenFile(filepath.Join(d.machine(m), "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := vfs.Lock(ctx, lock); err != nil {
		return err
	}
	return f()
}

// fence reads the lowest epoch that may put.
func (d *Directory) fence(m ident.MachineID) (ident.Epoch, error) {
	b, err := vfs.ReadFile(d.fs, filepath.Join(d.machine(m), "fence"), maxFence)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("the fence is damaged: %w", err)
	}
	return ident.Epoch(n), nil
}

// Put stores an object; see [Store].
func (d *Directory) Put(ctx context.Context, name Name, content io.ReaderAt, size int64) error {
	err := d.locked(ctx, name.Machine, func() error {
		fence, err := d.fence(name.Machine)
		if err != nil {
			return err
		}
		if name.Epoch < fence {
			return fmt.Errorf("%w (epoch %d, ours is %d)", ErrFenced, fence, name.Epoch)
		}
		same, err := d.holds(name, content, size)
		if err != nil {
			return err
		}
		if same || d.link(name, content) {
			return d.settle(name.Machine)
		}
		return d.write(ctx, name.Machine, d.path(name), io.NewSectionReader(content, 0, size), size)
	})
	if err != nil {
		return fmt.Errorf("put change set %d of %s into the cache: %w", name.Seq, name.Machine, err)
	}
	return nil
}

// holds reports whether the object is there with the same content, and fails when
// it is there with another.
func (d *Directory) holds(name Name, content io.ReaderAt, size int64) (bool, error) {
	f, err := d.fs.OpenFile(d.path(name), os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	same := info.Size == size
	have, want := make([]byte, copyBuffer), make([]byte, copyBuffer)
	for at := int64(0); same && at < size; at += copyBuffer {
		n := min(copyBuffer, size-at)
		if _, err := io.ReadFull(io.NewSectionReader(f, at, n), have[:n]); err != nil {
			return false, err
		}
		if _, err := io.ReadFull(io.NewSectionReader(content, at, n), want[:n]); err != nil {
			return false, err
		}
		same = bytes.Equal(have[:n], want[:n])
	}
	if !same {
		return false, ErrExists
	}
	return true, nil
}

// link gives a durable file of the same file system, as the spool has them, a second
// name instead of a copy: neither is ever written to. It reports whether it could.
func (d *Directory) link(name Name, content io.ReaderAt) bool {
	f, ok := content.(vfs.File)
	if !ok {
		return false
	}
	want, err := f.Stat()
	if err != nil || d.fs.Link(f.Name(), d.path(name)) != nil {
		return false
	}
	if have, err := d.fs.Stat(d.path(name)); err == nil && have.ID == want.ID {
		return true
	}
	_ = d.fs.Remove(d.path(name)) // the name was another file's by then
	return false
}

// write makes a file durably, all or nothing.
func (d *Directory) write(ctx context.Context, m ident.MachineID, path string, content io.Reader, size int64) error {
	f, err := vfs.CreateTemp(d.fs, d.machine(m), ".put-", "")
	if err != nil {
		return err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{content}, make([]byte, copyBuffer))
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	err = errors.Join(err, ctx.Err())
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = d.fs.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, d.fs.Remove(f.Name()))
	}
	return d.settle(m)
}

// settle makes the machine's names durable, also those that a process made which
// was killed.
func (d *Directory) settle(m ident.MachineID) error {
	return errors.Join(d.fs.SyncDir(d.machine(m)), d.fs.SyncDir(d.dir))
}

// object is an open object.
type object struct {
	vfs.File
	size int64
}

func (o object) Size() int64 { return o.size }

// Open opens an object; ErrNotFound.
func (d *Directory) Open(_ context.Context, name Name) (Object, error) {
	f, err := d.fs.OpenFile(d.path(name), os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open change set %d of %s in the cache: %w", name.Seq, name.Machine, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open a change set in the cache: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open a change set in the cache: %w", err), f.Close())
	}
	return object{f, info.Size}, nil
}

// List gives the machine's objects.
func (d *Directory) List(_ context.Context, machine ident.MachineID) ([]Name, error) {
	files, err := d.fs.ReadDir(d.machine(machine))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the cache of %s: %w", machine, err)
	}
	var out []Name
	for _, f := range files {
		base, ok := strings.CutSuffix(f, objectSuffix)
		n := Name{Machine: machine}
		if !ok {
			continue
		}
		if _, err := fmt.Sscanf(base, "%d-%d", &n.Seq, &n.Epoch); err != nil || fmt.Sprintf(objectFormat, n.Seq, n.Epoch) != base {
			continue // not ours
		}
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b Name) int { return cmp.Or(cmp.Compare(a.Seq, b.Seq), cmp.Compare(a.Epoch, b.Epoch)) })
	return out, nil
}

// Delete removes an object; an absent one is no error.
func (d *Directory) Delete(_ context.Context, name Name) error {
	if err := d.fs.Remove(d.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete change set %d of %s from the cache: %w", name.Seq, name.Machine, err)
	}
	return nil
}

// Fence refuses lower epochs from now on. It is never lowered.
func (d *Directory) Fence(ctx context.Context, machine ident.MachineID, epoch ident.Epoch) error {
	err := d.locked(ctx, machine, func() error {
		have, err := d.fence(machine)
		if err != nil {
			return err
		}
		if have == epoch {
			return d.settle(machine)
		}
		if have > epoch {
			return fmt.Errorf("%w (epoch %d, ours is %d)", ErrFenced, have, epoch)
		}
		text := strconv.FormatUint(uint64(epoch), 10) + "\n"
		return d.write(ctx, machine, filepath.Join(d.machine(machine), "fence"), strings.NewReader(text), int64(len(text)))
	})
	if err != nil {
		return fmt.Errorf("fence %s in the cache: %w", machine, err)
	}
	return nil
}
