package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"drover/agent/tracker/changes"
)

const (
	rounds  = 4
	writes  = 100 // of a round
	files   = 60
	mount   = "/tmp/disk"
	fitrim  = 0xc0185879 // FITRIM of linux/fs.h, which x/sys does not have
	allTrim = ^uint64(0)
)

// judge compares what a source says with what is on the disk.
type judge struct {
	source         changes.Source
	disk           *device
	before         []uint64
	changed, named int64
}

// try has a source follow the disk while it is written to.
func try(disk string, open func() (changes.Source, error)) (text string, err error) {
	source, err := open()
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	d, err := openDevice(disk)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	if _, err := source.Follow([]changes.Device{d.about}); err != nil {
		return "", err
	}
	j := &judge{source: source, disk: d}
	if j.before, err = d.snapshot(); err != nil {
		return "", err
	}
	if err := j.compare("nothing"); err != nil {
		return "", err
	}
	if j.named > 0 {
		return "", fmt.Errorf("%d blocks are named that nobody wrote", j.named)
	}
	if err := writeFiles(j); err != nil {
		return "", err
	}
	for i := range rounds {
		if err := writeRound(j, i); err != nil {
			return "", err
		}
	}
	if j.changed == 0 {
		return "", errors.New("nothing changed: the test writes nothing")
	}
	counters, err := source.Counters()
	return fmt.Sprintf("%d blocks changed, %d were named, %v", j.changed, j.named, counters), err
}

// writeRound writes to the disk and to its partition, by turns.
func writeRound(j *judge, round int) error {
	path := []string{j.disk.path, partition(j.disk.path)}[round%2]
	d, err := openDevice(path)
	if err != nil {
		return err
	}
	err = errors.Join(d.write(writes), d.close())
	if err != nil {
		return err
	}
	return j.compare(fmt.Sprintf("round %d on %s", round, path))
}

// writeFiles writes to the file system on the partition.
func writeFiles(j *judge) error {
	if err := os.MkdirAll(mount, 0o700); err != nil {
		return err
	}
	if err := unix.Mount(partition(j.disk.path), mount, "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", partition(j.disk.path), err)
	}
	for i := range files {
		name := filepath.Join(mount, fmt.Sprintf("file%d", i%20))
		if err := os.WriteFile(name, j.disk.data[:1+i*5000], 0o600); err != nil {
			return err
		}
		if i%7 == 0 {
			if err := os.Remove(name); err != nil {
				return err
			}
		}
	}
	dir, err := os.Open(mount)
	if err != nil {
		return err
	}
	trim := [3]uint64{0, allTrim, 0}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), fitrim, uintptr(unsafe.Pointer(&trim))) //nolint:gosec // what the ioctl takes
	if errno != 0 {
		err = fmt.Errorf("trim: %w", errno)
	}
	if err := errors.Join(err, dir.Close()); err != nil {
		return err
	}
	if err := unix.Unmount(mount, 0); err != nil {
		return err
	}
	return j.compare("file system")
}

// compare asks the source and reads the disk.
func (j *judge) compare(what string) error {
	said := make(changes.Bitmap, changes.Words(j.disk.size))
	if err := j.source.Drain(0, said); err != nil {
		return err
	}
	gap, err := j.source.Gap()
	if err != nil {
		return err
	}
	if gap != "" {
		return fmt.Errorf("%s: a gap: %s", what, gap)
	}
	now, err := j.disk.snapshot()
	if err != nil {
		return err
	}
	missed := 0
	for b := range now {
		if now[b] == j.before[b] {
			continue
		}
		j.changed++
		if !said.Has(int64(b)) {
			missed++
		}
	}
	j.before = now
	j.named += said.Count()
	if missed > 0 {
		return fmt.Errorf("%s: %d blocks changed and were not named", what, missed)
	}
	return nil
}

// silent is a source that says nothing: it is to fail.
type silent struct{ changes.Source }

func (silent) Follow([]changes.Device) ([]bool, error) { return make([]bool, 1), nil }
func (silent) Drain(int, changes.Bitmap) error         { return nil }
func (silent) Gap() (string, error)                    { return "", nil }
func (silent) Counters() (map[string]uint64, error)    { return nil, nil }
func (silent) Close() error                            { return nil }
