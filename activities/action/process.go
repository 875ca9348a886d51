package action

import (
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"os/user"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// lowUser gives the credential of the user that scripts run as; nil for no name: ours.
func lowUser(name string) (*syscall.Credential, error) {
	if name == "" {
		return nil, nil //nolint:nilnil // nobody is named
	}
	u, err := user.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("scriptUser %s: %w", name, err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("scriptUser %s: %w", name, err)
	}
	if uid == 0 {
		return nil, fmt.Errorf("scriptUser %s: want a user that is not root", name)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

// confined runs the command as a process group of its own, which a cancellation ends as a
// whole: SIGTERM, and after a while SIGKILL. What the command has left running when it ends
// is ended too; call the function then. In a control group that holds for processes that
// have left the process group, too; where none can be made, the command does without.
func confined(cmd *exec.Cmd, as *syscall.Credential, log *slog.Logger) (after func()) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: as}
	all, err := newCgroup()
	if err != nil {
		log.Debug("a script has no control group: what leaves its process group outlives it", "error", err.Error())
	} else {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(all.fd.Fd())
	}
	kill := func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		if all != nil {
			_ = all.kill()
		}
	}
	var later *time.Timer
	cmd.Cancel = func() error {
		later = time.AfterFunc(killAfter, kill)
		return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
	}
	cmd.WaitDelay = 2 * killAfter // for what holds the output open and could not be ended
	return func() {
		if later != nil {
			later.Stop()
		}
		if cmd.Process != nil {
			kill()
		}
		if all == nil {
			return
		}
		if err := all.remove(); err != nil {
			log.Warn("something that a script started may still run", "error", err.Error())
		}
	}
}

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex
	max int
	b   []byte
	cut bool
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if len(t.b) > t.max {
		t.b, t.cut = append([]byte(nil), t.b[len(t.b)-t.max:]...), true
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cut {
		return "..." + string(t.b)
	}
	return string(t.b)
}
