// Package doctor looks at everything the agent needs in its guest and says of each thing
// whether it is well, and if not, what to do. It changes nothing.
//
//	doctor.go   the order of the checks
//	identity.go configuration, certificate, state directory
//	network.go  configuration server, clock, process server
//	machine.go  disks, file systems, tracker, memory, programs
//	system_*.go which of them a system has
package doctor

import (
	"context"
	"fmt"
	"time"

	"drover/agent/config"
	"drover/agent/controlapi"
	"drover/agent/disk"
	"drover/agent/enrol"
	"drover/agent/preflight"
	"drover/agent/status"
)

// Options of an examination.
type Options struct {
	File   string         // the configuration's
	Config *config.Config // nil: it could not be read, because of
	Err    error
	Dial   controlapi.Dial
	// Root is where the system's files are; "/" when empty. Tests have trees of their own.
	Root   string
	System disk.System
	Now    func() time.Time
}

// patient is what is examined.
type patient struct {
	Options
	identity   *enrol.Identity
	assignment controlapi.Assignment
	disks      []controlapi.InventoryDisk
}

func (p *patient) root(path string) string {
	if p.Root == "" || p.Root == "/" {
		return path
	}
	return p.Root + path
}

// Examine makes all checks.
func Examine(ctx context.Context, o Options) []controlapi.Finding {
	if o.Now == nil {
		o.Now = time.Now
	}
	p := &patient{Options: o}
	if o.Err != nil || o.Config == nil {
		return []controlapi.Finding{fail("configuration", "correct it; docs/agent.md explains each line", "%v", o.Err)}
	}
	out := []controlapi.Finding{p.configuration()}
	out = append(out, p.certificate()...)
	out = append(out, p.state()...)
	out = append(out, p.running(ctx))
	out = append(out, p.control(ctx)...)
	out = append(out, p.processServer(ctx))
	out = append(out, p.diskList()...)
	return append(out, p.system()...)
}

// Failed reports whether any check failed.
func Failed(all []controlapi.Finding) bool {
	for _, f := range all {
		if f.Level == controlapi.LevelFail {
			return true
		}
	}
	return false
}

func ok(check, what string, args ...any) controlapi.Finding {
	return controlapi.Finding{Check: check, Level: controlapi.LevelOK, What: fmt.Sprintf(what, args...)}
}

func warn(check, advice, what string, args ...any) controlapi.Finding {
	return controlapi.Finding{Check: check, Level: controlapi.LevelWarn, Advice: advice, What: fmt.Sprintf(what, args...)}
}

func fail(check, advice, what string, args ...any) controlapi.Finding {
	return controlapi.Finding{Check: check, Level: controlapi.LevelFail, Advice: advice, What: fmt.Sprintf(what, args...)}
}

// running asks the agent itself.
func (p *patient) running(ctx context.Context) controlapi.Finding {
	const check = "agent"
	st, err := status.Get(ctx, p.Config.Socket)
	switch {
	case err != nil:
		return warn(check, "start it: `systemctl start drover-agent`; `journalctl -u drover-agent` says why it stopped", "%v", err)
	case len(st.Problems) > 0:
		return warn(check, "see `drover-agent status`", "it runs, but %s", st.Problems[0])
	}
	return ok(check, "it runs as process %d and is %s", st.PID, st.State)
}

// target repeats the preflight. It blocks nothing, so that none of it fails.
func (p *patient) target() []controlapi.Finding {
	found, err := preflight.Check(p.root("/"), p.kernel())
	if err != nil {
		return []controlapi.Finding{warn("target", "", "%v", err)}
	}
	for i := range found {
		found[i].Check = "target-" + found[i].Check
		if found[i].Level == controlapi.LevelFail {
			found[i].Level = controlapi.LevelWarn
		}
	}
	return found
}
