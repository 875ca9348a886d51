//go:build linux

package freeze

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"drover/agent/mountinfo"
)

// writers finds, of block devices that have no file system of ours, those that a
// process has open for writing, and names one such process of each.
func writers(wanted []mountinfo.Number) (map[mountinfo.Number]string, error) {
	processes, err := list("/proc")
	if err != nil {
		return nil, err
	}
	out := map[mountinfo.Number]string{}
	unseen := ""
	self := strconv.Itoa(os.Getpid())
	for _, pid := range processes {
		if _, err := strconv.Atoi(pid); err != nil || pid == self {
			continue
		}
		dir := filepath.Join("/proc", pid)
		fds, err := list(filepath.Join(dir, "fd"))
		if errors.Is(err, fs.ErrPermission) {
			unseen = processName(dir, pid) + ", perhaps: its files cannot be seen without CAP_SYS_PTRACE,"
		}
		if err != nil {
			continue // it has ended
		}
		for _, fd := range fds {
			path := filepath.Join(dir, "fd", fd)
			target, err := os.Readlink(path)
			if err != nil || !strings.Contains(target, "/dev/") || !writes(filepath.Join(dir, "fdinfo", fd)) {
				continue
			}
			id, err := identify(path)
			if err == nil && id.block && slices.Contains(wanted, id.number) {
				out[id.number] = processName(dir, pid)
			}
		}
	}
	for _, n := range wanted {
		if out[n] == "" && unseen != "" {
			out[n] = unseen
		}
	}
	return out, nil
}

// writes reports whether an open file is open for writing.
func writes(fdinfo string) bool {
	b, err := os.ReadFile(fdinfo) //nolint:gosec // in procfs
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(b), "flags:")
	text, _, _ := strings.Cut(strings.TrimSpace(after), "\n")
	flags, err := strconv.ParseUint(text, 8, 32)
	return err == nil && int(flags)&(os.O_WRONLY|os.O_RDWR) != 0
}

func processName(dir, pid string) string {
	b, err := os.ReadFile(filepath.Join(dir, "comm")) //nolint:gosec // in procfs
	if err != nil {
		return "process " + pid
	}
	return fmt.Sprintf("process %s (%s)", pid, strings.TrimSpace(string(b)))
}
