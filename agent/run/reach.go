package run

import (
	"context"
	"time"

	"drover/agent/controlapi"
	"drover/datapath/wire"
)

// reach sees whether the server can be reached that a standby names, again and again
// until it was; heartbeats tell of it.
func (a *Agent) reach(ctx context.Context) error {
	for ctx.Err() == nil {
		as, changed := a.assigned.get()
		var again <-chan time.Time
		if as.Reach {
			r := controlapi.Reached{Address: as.Address, Via: as.Via}
			if err := a.try(ctx, as); err != nil {
				r.Error, again = err.Error(), time.After(heartbeatEvery)
			}
			a.told.reaches(as.Version, r)
		}
		select {
		case <-changed:
		case <-again:
		case <-ctx.Done():
		}
	}
	return nil
}

// try opens a stream at the server, and closes it.
func (a *Agent) try(ctx context.Context, as controlapi.Assignment) error {
	t, err := a.target(as)
	if err != nil {
		return err
	}
	conn, err := wire.Dial(ctx, t.Dial, t.Address, t.TLS)
	if err != nil {
		return err
	}
	_ = conn.Close() // it was there
	return nil
}
