package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	files   = 60
	small   = 400 // files, of one block each
	mount   = "/tmp/disk"
	fitrim  = 0xc0185879 // FITRIM of linux/fs.h, which x/sys does not have
	allTrim = ^uint64(0)
)

// mounted does something with the file system on the partition while it is mounted.
func mounted(j *judge, kind, options string, do func(dir string) error) error {
	if err := os.MkdirAll(mount, 0o700); err != nil {
		return err
	}
	if err := unix.Mount(j.partition, mount, kind, 0, options); err != nil {
		return fmt.Errorf("mount %s: %w", j.partition, err)
	}
	return errors.Join(do(mount), unix.Unmount(mount, 0))
}

// writeFiles writes files to ext4, and trims it.
func writeFiles(j *judge) error {
	err := mounted(j, "ext4", "", func(dir string) error {
		for i := range files {
			name := filepath.Join(dir, fmt.Sprintf("file%d", i%20))
			err := os.WriteFile(name, j.dev.data[:1+i*5000], 0o600)
			if err == nil && i%7 == 0 {
				err = os.Remove(name)
			}
			if err != nil {
				return err
			}
		}
		return trim(dir)
	})
	if err != nil {
		return err
	}
	return j.compare("ext4")
}

// trim discards what is free in the file system.
func trim(mount string) error {
	dir, err := os.Open(mount) //nolint:gosec // ours
	if err != nil {
		return err
	}
	r := [3]uint64{0, allTrim, 0}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), fitrim, uintptr(unsafe.Pointer(&r))) //nolint:gosec // what the ioctl takes
	if errno != 0 {
		err = fmt.Errorf("trim: %w", errno)
	}
	return errors.Join(err, dir.Close())
}

// trimFiles makes many small files on XFS and removes every other one. XFS discards
// what that frees at once, so that the block layer makes requests of many ranges of it.
func trimFiles(j *judge) error {
	name := func(dir string, i int) string { return filepath.Join(dir, fmt.Sprintf("file%d", i)) }
	err := mounted(j, "xfs", "", func(dir string) error {
		for i := range small {
			if err := os.WriteFile(name(dir, i), j.dev.data[i*sector:][:4096], 0o600); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := j.compare("files on XFS"); err != nil {
		return err
	}
	err = mounted(j, "xfs", "discard", func(dir string) error {
		for i := 0; i < small; i += 2 {
			if err := os.Remove(name(dir, i)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return j.compare("discards of XFS")
}
