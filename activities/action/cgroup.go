package action

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// cgroup is a control group of one command. What the command starts cannot leave it, as
// it can leave a process group with setsid.
type cgroup struct {
	dir string
	fd  *os.File // of dir
}

// newCgroup makes one below our own. It fails where there is no cgroup v2, none that we may
// divide (systemd: Delegate=yes), or a kernel before 5.14.
func newCgroup() (*cgroup, error) {
	parent, err := ownCgroup()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(parent, "drover-script-")
	if err != nil {
		return nil, err
	}
	g := &cgroup{dir: dir}
	kind, err := os.ReadFile(filepath.Join(dir, "cgroup.type"))
	if err == nil && strings.TrimSpace(string(kind)) != "domain" {
		err = fmt.Errorf("control groups in %s are %s", parent, strings.TrimSpace(string(kind)))
	}
	if err == nil {
		_, err = os.Stat(g.killer())
	}
	if err == nil {
		g.fd, err = os.Open(dir)
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(dir))
	}
	return g, nil
}

// ownCgroup is the directory of the cgroup v2 that this process is in.
func ownCgroup() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(own)) {
		path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if root := cgroupMount(string(mounts)); ok && root != "" {
			return filepath.Join(root, path), nil
		}
	}
	return "", errors.New("there is no cgroup v2")
}

// cgroupMount finds where cgroup v2 is mounted as a whole: "36 35 0:30 / /sys/fs/cgroup
// rw,relatime - cgroup2 cgroup2 rw".
func cgroupMount(mountinfo string) string {
	for line := range strings.Lines(mountinfo) {
		where, what, _ := strings.Cut(line, " - ")
		if f := strings.Fields(where); strings.HasPrefix(what, "cgroup2 ") && len(f) > 4 && f[3] == "/" {
			return f[4]
		}
	}
	return ""
}

func (g *cgroup) killer() string { return filepath.Join(g.dir, "cgroup.kill") }

// kill ends all that is in it with SIGKILL.
func (g *cgroup) kill() error { return os.WriteFile(g.killer(), []byte("1"), 0) }

// remove ends all that is in it and removes it. It waits a moment for the kernel.
func (g *cgroup) remove() error {
	const patience, pause = 2 * time.Second, 5 * time.Millisecond
	err := errors.Join(g.fd.Close(), g.kill())
	for end := time.Now().Add(patience); err == nil; time.Sleep(pause) {
		switch busy := os.Remove(g.dir); {
		case busy == nil || errors.Is(busy, fs.ErrNotExist):
			return nil
		case time.Now().After(end):
			err = busy
		}
	}
	return fmt.Errorf("end what a script left in %s: %w", g.dir, err)
}
