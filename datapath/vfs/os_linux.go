package vfs

import (
	"errors"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

const (
	seekData  = 3 // values of whence that Linux knows beyond io's
	seekHole  = 4
	blockUnit = 512 // of st_blocks
)

func (system) Stat(path string) (Info, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return Info{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return info(&st), nil
}

func (system) SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func info(st *unix.Stat_t) Info {
	return Info{
		Dir:  st.Mode&unix.S_IFMT == unix.S_IFDIR,
		Size: st.Size, Allocated: st.Blocks * blockUnit,
		Modified: st.Mtim.Nano(),
		ID:       ID{st.Dev, st.Ino},
	}
}

func (f osFile) Stat() (Info, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return Info{}, f.fail("stat", err)
	}
	i := info(&st)
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		var err error
		if i.Size, err = f.Seek(0, io.SeekEnd); err != nil {
			return Info{}, err
		}
	}
	return i, nil
}

func (f osFile) PunchHole(offset, length int64) error {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, length)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL):
		err = errors.Join(errors.ErrUnsupported, err)
	}
	return f.fail("punch hole", err)
}

func (f osFile) NextData(offset int64) (from, to int64, err error) {
	if from, err = f.Seek(offset, seekData); errors.Is(err, unix.ENXIO) {
		return 0, 0, io.EOF
	}
	if err != nil {
		return 0, 0, err
	}
	to, err = f.Seek(from, seekHole)
	return from, to, err
}

func (f osFile) TryLock() (bool, error) {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, unix.EWOULDBLOCK):
			return false, nil
		case !errors.Is(err, unix.EINTR):
			return false, f.fail("lock", err)
		}
	}
}
