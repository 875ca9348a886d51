package run

import (
	"context"
	"strings"
	"sync"

	"drover/agent/controlapi"
)

// latest holds the newest assignment.
type latest struct {
	mu      sync.Mutex
	a       controlapi.Assignment
	changed chan struct{}
}

func newLatest() *latest { return &latest{changed: make(chan struct{})} }

// get gives the assignment, and a channel that is closed when there is another.
func (l *latest) get() (controlapi.Assignment, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.a, l.changed
}

func (l *latest) set(a controlapi.Assignment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.a = a
	close(l.changed)
	l.changed = make(chan struct{})
}

// follow asks for the assignment, again and again. While the configuration server
// is away the last one stays in force.
func (a *Agent) follow(ctx context.Context) error {
	var version uint64
	first, pause := true, backoffFirst
	for ctx.Err() == nil {
		wait := pollWait
		if first {
			wait = 0
		}
		as, err := a.control.Assignment(ctx, version, wait)
		if err != nil {
			if ctx.Err() == nil {
				a.log.Warn("no answer about the assignment; the last one stays", "error", err.Error(), "pause", pause.String())
			}
			sleep(ctx, pause)
			pause = min(2*pause, backoffMost)
			continue
		}
		pause = backoffFirst
		if !first && as.Version == version {
			continue
		}
		first, version = false, as.Version
		a.log.Info("assignment", "version", as.Version, "action", string(as.Action), "server", as.Server, "epoch", as.Epoch, "reason", as.Reason)
		a.assigned.set(a.own(as))
	}
	return nil
}

// own makes an assignment that is meant for another copy of this machine a standby.
func (a *Agent) own(as controlapi.Assignment) controlapi.Assignment {
	if (as.Action == controlapi.ActionReplicate || as.Reach) && !strings.EqualFold(as.Instance, a.config.Instance) {
		a.log.Info("another copy of this machine is assigned; standing by", "instance", as.Instance)
		return controlapi.Assignment{Version: as.Version, Action: controlapi.ActionStandby, Machine: as.Machine, Reason: "another copy of this machine is assigned"}
	}
	return as
}
