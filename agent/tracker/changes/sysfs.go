package changes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Directory is where the kernel tells of a block device, below /sys.
func Directory(sys string, d Device) string {
	return filepath.Join(sys, "dev/block", fmt.Sprintf("%d:%d", d.Major, d.Minor))
}

// Check refuses a device whose writes the events of the block layer do not tell, whatever
// listens to them.
func Check(sys string, d Device) error {
	dir, name := Directory(sys, d), fmt.Sprintf("%d:%d", d.Major, d.Minor)
	if _, err := os.Stat(dir); err != nil {
		return fmt.Errorf("there is no block device %s: %w", name, err)
	}
	if d.Size <= 0 {
		return fmt.Errorf("%s has a size of %d bytes: there is nothing to follow", name, d.Size)
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		return fmt.Errorf("%s is a partition: follow the disk that it is on", name)
	}
	scheduler, err := Attribute(dir, "queue/scheduler")
	if err != nil {
		return err
	}
	// Before there was "mq", what makes requests had a scheduler to choose.
	if _, err := os.Stat(filepath.Join(dir, "mq")); errors.Is(err, fs.ErrNotExist) && !strings.Contains(scheduler, "[") {
		return fmt.Errorf("%s has no queue of requests (device mapper, md, zram and other stacked or memory devices have none), so the kernel tells none of its writes: follow the disks below it", name)
	}
	zoned, err := Attribute(dir, "queue/zoned")
	if err != nil {
		return err
	}
	if zoned != "" && zoned != "none" {
		return fmt.Errorf("%s has zones (%s), whose writes and resets do not say where they are: it cannot be tracked", name, zoned)
	}
	return nil
}

// Attribute reads a short file of a device's; one that older kernels do not have is empty.
func Attribute(dir, name string) (string, error) {
	text, err := os.ReadFile(filepath.Join(dir, name)) //nolint:gosec // sysfs
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(text)), err
}
