//go:build linux

package trace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"drover/agent/mountinfo"
	"io"
)

// tracefs is the kernel's file system of trace events.
type tracefs struct {
	path string
	own  *os.File // the root of a mount of ours, which lives as long as this is open
}

const (
	blockDir   = "events/block"
	clock      = "mono" // of the whole machine, and the one that we read ourselves
	lockdown   = "/sys/kernel/security/lockdown"
	namePrefix = "drover-"
)

// openTracefs finds tracefs, or mounts it where nobody else sees it.
func openTracefs() (*tracefs, error) {
	list, err := os.Open(mountinfo.Path)
	if err != nil {
		return nil, fmt.Errorf("find tracefs: %w", err)
	}
	path := findTracefs(list)
	if err := list.Close(); err != nil {
		return nil, fmt.Errorf("find tracefs: %w", err)
	}
	if path != "" {
		return &tracefs{path: path}, nil
	}
	return mountTracefs()
}

// findTracefs looks through the mounts for tracefs, else for a debugfs with it inside.
func findTracefs(list io.Reader) (path string) {
	for m, err := range mountinfo.All(list) {
		switch {
		case err != nil || m.Root != "/":
		case m.Type == "tracefs":
			return m.Point
		case m.Type == "debugfs":
			path = filepath.Join(m.Point, "tracing")
		}
	}
	if _, err := os.Stat(filepath.Join(path, "instances")); path == "" || err != nil {
		return ""
	}
	return path
}

// mountTracefs mounts tracefs on a directory that is gone again before this returns.
// The mount goes with the process.
func mountTracefs() (*tracefs, error) {
	dir, err := os.MkdirTemp("", "drover-tracefs-")
	if err != nil {
		return nil, fmt.Errorf("mount tracefs: %w", err)
	}
	var root *os.File
	if err = unix.Mount("tracefs", dir, "tracefs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err == nil {
		root, err = os.Open(dir)
		err = errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH))
	}
	if err = errors.Join(err, os.Remove(dir)); err != nil {
		if root != nil {
			err = errors.Join(err, root.Close())
		}
		return nil, fmt.Errorf("mount tracefs: %w", err)
	}
	return &tracefs{path: fmt.Sprintf("/proc/self/fd/%d", root.Fd()), own: root}, nil
}

func (t *tracefs) close() error {
	if t.own == nil {
		return nil
	}
	return t.own.Close()
}

func (t *tracefs) read(name string) (string, error) { return readText(filepath.Join(t.path, name)) }

// readText reads a description or a state; they are short.
func readText(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	var out strings.Builder
	buf := make([]byte, 4096)
	for out.Len() <= maxText {
		n, err := f.Read(buf)
		out.Write(buf[:n])
		if err != nil || n == 0 {
			break
		}
	}
	return out.String(), f.Close()
}

// writeText writes a setting; in one call, as the kernel wants it.
func writeText(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// instances counts those that this process has made.
var instances atomic.Uint32

// makeInstance makes a trace instance of our own. Its name says whose it is.
func (t *tracefs) makeInstance() (dir string, err error) {
	started, err := startOf(os.Getpid())
	if err != nil {
		return "", err
	}
	name := fmt.Sprintf("%s%d-%s-%d", namePrefix, os.Getpid(), started, instances.Add(1))
	dir = filepath.Join(t.path, "instances", name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", fmt.Errorf("make a trace instance: %w", err)
	}
	return dir, nil
}

// startOf is when a process was started, in ticks since the boot.
func startOf(pid int) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	_, rest, _ := strings.Cut(string(text), ") ") // its name may have spaces
	if i := strings.LastIndex(string(text), ") "); i >= 0 {
		rest = string(text[i+2:])
	}
	const startField = 19 // of those behind the name
	fields := strings.Fields(rest)
	if len(fields) <= startField {
		return "", fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	return fields[startField], nil
}

// removeLeftovers removes the instances of processes of ours that are no more. One that
// is in use after all, by a process that we do not see, the kernel keeps.
func (t *tracefs) removeLeftovers() error {
	list, err := os.ReadDir(filepath.Join(t.path, "instances"))
	if err != nil {
		return fmt.Errorf("list the trace instances: %w", err)
	}
	for _, entry := range list {
		pid, started, ok := parseInstance(entry.Name())
		if !ok {
			continue
		}
		now, err := startOf(pid)
		if err == nil && now == started || err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
			continue
		}
		err = unix.Rmdir(filepath.Join(t.path, "instances", entry.Name()))
		if err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove the trace instance %s of a process that is gone: %w", entry.Name(), err)
		}
	}
	return nil
}

// parseInstance takes the name of an instance of ours apart.
func parseInstance(name string) (pid int, started string, ok bool) {
	rest, ok := strings.CutPrefix(name, namePrefix)
	parts := strings.Split(rest, "-")
	if !ok || len(parts) != 3 {
		return 0, "", false
	}
	for _, p := range parts {
		if _, err := strconv.ParseUint(p, 10, 63); err != nil {
			return 0, "", false
		}
	}
	pid, err := strconv.Atoi(parts[0])
	return pid, parts[1], err == nil && pid > 0
}

// Available says why this source cannot be used on this machine; nil if it can.
func Available() error {
	t, err := openTracefs()
	if err == nil {
		err = errors.Join(t.check(), t.close())
	}
	return explain(err)
}

// check looks for what the source needs.
func (t *tracefs) check() error {
	if _, err := t.describe(); err != nil {
		return err
	}
	clocks, err := t.read("trace_clock")
	if err != nil {
		return err
	}
	if !hasWord(clocks, clock) {
		return fmt.Errorf("the kernel's trace has no clock %q; it is older than 3.17", clock)
	}
	return unix.Access(filepath.Join(t.path, "instances"), unix.W_OK)
}

func hasWord(text, word string) bool {
	for _, w := range strings.Fields(text) {
		if strings.Trim(w, "[]") == word {
			return true
		}
	}
	return false
}

// explain puts the cause into words of what to do.
func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrPermission) && strings.Contains(lockdownState(), "[confidentiality]"):
		return fmt.Errorf("the kernel is locked down for confidentiality and lets nobody trace: %w", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("tracing takes root with CAP_SYS_ADMIN: %w", err)
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("the kernel was built without tracefs: %w", err)
	}
	return fmt.Errorf("the kernel's trace events cannot be used: %w", err)
}

func lockdownState() string {
	text, err := os.ReadFile(lockdown)
	if err != nil {
		return "" // a kernel without lockdown
	}
	return string(text)
}
