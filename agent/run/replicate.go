package run

import (
	"context"
	"errors"
	"fmt"
	"time"

	"drover/agent/controlapi"
	"drover/agent/pace"
	"drover/agent/proxy"
	"drover/agent/session"
	"drover/datapath/ident"
	"drover/datapath/wire"
)

// replicate runs sessions as assigned until ctx ends.
func (a *Agent) replicate(ctx context.Context) error {
	for ctx.Err() == nil {
		as, changed := a.assigned.get()
		a.keepMemory(as)
		inner, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() { defer close(done); a.sessions(inner, as) }()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		cancel()
		<-done
		// Whoever wanted the machine frozen has lost it.
		if err := a.source.Load().Thaw(ctx); err != nil {
			a.log.Error("the machine could not be thawed", "error", err.Error())
		}
	}
	return nil
}

// target is the server that an assignment names, and the way there.
func (a *Agent) target(as controlapi.Assignment) (session.Target, error) {
	dial := a.dial
	if as.Via != "" {
		relay, err := proxy.Dialer("http://" + as.Via)
		if err != nil {
			return session.Target{}, fmt.Errorf("the relay %q: %w", as.Via, err)
		}
		dial = relay
	}
	return session.Target{
		Epoch: as.Epoch, Address: as.Address, Dial: wire.DialFunc(dial), Disks: as.Disks,
		TLS: a.identity.ClientTLS(ident.Peer{Role: as.Role, Name: as.Server}),
	}, nil
}

// sessions follows one assignment, with pauses that grow while nothing works.
func (a *Agent) sessions(ctx context.Context, as controlapi.Assignment) {
	if as.Action != controlapi.ActionReplicate {
		return
	}
	target, err := a.target(as)
	if err != nil {
		a.log.Error("the assignment cannot be followed", "error", err.Error())
		return // until there is another
	}
	ctx = pace.With(ctx, a.pacer)
	pause := backoffFirst
	for ctx.Err() == nil {
		begin := time.Now()
		err := a.source.Load().Run(ctx, target)
		if ctx.Err() != nil {
			return
		}
		if time.Since(begin) > backoffMost {
			pause = backoffFirst // it had worked
		}
		wait := pause
		var refused *session.Refused
		if errors.As(err, &refused) {
			wait = max(wait, refused.RetryAfter)
			if refused.RetryAfter > 0 {
				pause = backoffFirst // the server knows when it is worth while
			}
		}
		a.log.Warn("session ended", "server", as.Server, "error", fmt.Sprint(err), "pause", wait.String())
		sleep(ctx, wait)
		pause = min(2*pause, backoffMost)
	}
}
