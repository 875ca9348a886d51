package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"drover/tests/lab/guest"
)

// Format makes an ext4 file system on the disk file, which keeps its size, and
// fills it with a directory's content. It needs neither a mount nor root.
func Format(ctx context.Context, disk, label, content string) error {
	cmd := exec.CommandContext(ctx, guest.Tool("mke2fs"), "-q", "-F", "-t", "ext4", "-b", "4096", "-L", label,
		"-E", "root_owner=0:0,lazy_itable_init=0,nodiscard", "-d", content, disk)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make an ext4 file system on %s: %w: %s", disk, err, out)
	}
	return nil
}

// CheckFS runs `e2fsck -fn` on a disk file and gives its last line; an error means
// that the file system is not clean.
func CheckFS(ctx context.Context, disk string) (string, error) {
	out, err := exec.CommandContext(ctx, guest.Tool("e2fsck"), "-fn", disk).CombinedOutput()
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if err != nil {
		return "", fmt.Errorf("e2fsck -fn %s: %w: %s", disk, err, out)
	}
	return lines[len(lines)-1], nil
}

// NeedTools says which programs of e2fsprogs are missing.
func NeedTools() error {
	var err error
	for _, name := range []string{"mke2fs", "e2fsck", "debugfs"} {
		if _, e := exec.LookPath(guest.Tool(name)); e != nil {
			err = errors.Join(err, fmt.Errorf("%s is not installed: install e2fsprogs", name))
		}
	}
	return err
}

// formatDisks fills the VMs' disks, which the simulator made empty.
func (l *Lab) FormatDisks(ctx context.Context) error {
	for _, spec := range l.VMs {
		vm, err := l.VCenter.VM(spec.Name)
		if err != nil {
			return err
		}
		for i, d := range spec.Disks {
			path := vm.Disks[i].Path
			if err := Format(ctx, path, fmt.Sprintf("%s-%d", spec.Name, i), d.Content); err != nil {
				return err
			}
			if info, err := os.Stat(path); err != nil || info.Size() != d.Size {
				return fmt.Errorf("disk %s: size changed while it was formatted (%w)", path, err)
			}
		}
	}
	return nil
}
