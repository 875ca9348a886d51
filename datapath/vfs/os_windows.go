package vfs

import (
	"errors"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/windows"
)

// On Windows the agent alone keeps its few small files by this package; spools and
// replicas are Linux's.

func (system) Stat(path string) (Info, error) {
	f, err := os.Open(path)
	if err != nil {
		return Info{}, err
	}
	i, err := osFile{f}.Stat()
	return i, errors.Join(err, f.Close())
}

// SyncDir does nothing: NTFS journals names, and a directory cannot be flushed.
func (system) SyncDir(string) error { return nil }

func (f osFile) Stat() (Info, error) {
	info, err := f.File.Stat()
	if err != nil {
		return Info{}, err
	}
	var by syscall.ByHandleFileInformation
	if err := syscall.GetFileInformationByHandle(syscall.Handle(f.Fd()), &by); err != nil {
		return Info{}, f.fail("stat", err)
	}
	return Info{
		Dir: info.IsDir(), Size: info.Size(), Allocated: info.Size(), Modified: info.ModTime().UnixNano(),
		ID: ID{uint64(by.VolumeSerialNumber), uint64(by.FileIndexHigh)<<32 | uint64(by.FileIndexLow)},
	}, nil
}

func (f osFile) PunchHole(int64, int64) error { return f.fail("punch hole", errors.ErrUnsupported) }

// NextData takes all of a file to be data.
func (f osFile) NextData(offset int64) (from, to int64, err error) {
	info, err := f.File.Stat()
	if err != nil {
		return 0, 0, err
	}
	if offset >= info.Size() {
		return 0, 0, io.EOF
	}
	return offset, info.Size(), nil
}

func (f osFile) TryLock() (bool, error) {
	err := windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, new(windows.Overlapped))
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, windows.ERROR_LOCK_VIOLATION):
		return false, nil
	}
	return false, f.fail("lock", err)
}
