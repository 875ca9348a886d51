package run

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"drover/agent/controlapi"
)

// maxDetail bounds what a heartbeat says for people, in bytes.
const maxDetail = 400

// trackerText says which tracker is used, and why.
func (a *Agent) trackerText() string {
	if t := a.tracker.Load(); t != nil {
		return t.Why()
	}
	return ""
}

// heartbeats tells the configuration server that the agent lives, and what it sees.
func (a *Agent) heartbeats(ctx context.Context) error {
	ticker := time.NewTicker(heartbeatEvery)
	defer ticker.Stop()
	var told time.Time // when the inventory was
	var last []byte    // as it was told
	away := false
	for ctx.Err() == nil {
		_, changed := a.assigned.get() // what is protected is told at once
		in, hb := a.inventory(), a.heartbeat()
		now, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode the inventory: %w", err)
		}
		if time.Since(told) > inventoryEvery || !bytes.Equal(now, last) {
			hb.Inventory = in
		}
		begin := time.Now()
		res, err := a.control.Heartbeat(ctx, hb)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			a.told.unheard(err)
			if !away {
				a.log.Warn("the configuration server does not take the heartbeat; replication goes on", "error", err.Error())
			}
		default:
			a.told.heard(begin, res.Time)
			if away {
				a.log.Info("the configuration server takes heartbeats again")
			}
			if hb.Inventory != nil {
				told, last = time.Now(), now
			}
		}
		away = err != nil
		select {
		case <-ctx.Done():
		case <-changed:
		case <-ticker.C:
		}
	}
	return nil
}

func (a *Agent) heartbeat() controlapi.Heartbeat {
	as, _ := a.assigned.get()
	hb := controlapi.Heartbeat{Instance: a.config.Instance, Version: a.version, Time: time.Now().UTC(), State: "standby", Detail: as.Reason,
		Reached: a.told.reach(as)}
	if source := a.source.Load(); source != nil && as.Action == controlapi.ActionReplicate {
		st := source.State()
		hb.State, hb.Detail = st.Word, st.Detail
	}
	if state, detail := a.told.waits(); state != "" {
		hb.State, hb.Detail = state, detail
	} else if more := a.told.trouble(); more != "" {
		hb.Detail = strings.TrimPrefix(hb.Detail+"; "+more, "; ")
	}
	if len(hb.Detail) > maxDetail {
		hb.Detail = strings.ToValidUTF8(hb.Detail[:maxDetail], "")
	}
	return hb
}

// inventory describes the machine as far as it can be seen.
func (a *Agent) inventory() *controlapi.Inventory {
	in := &controlapi.Inventory{OS: osName(), Kernel: kernel(), BootID: bootID(), Tracker: a.trackerText(), Preflight: a.told.findings()}
	in.Hostname, _ = os.Hostname()
	as, _ := a.assigned.get()
	var err error
	if in.Disks, err = a.watch.Look(time.Now(), as); err != nil {
		a.log.Warn("not all disks could be listed", "error", err.Error())
		a.told.problem(partDisks, err.Error())
	} else {
		a.told.problem(partDisks, "")
	}
	in.Bound()
	a.told.saw(in.Disks)
	return in
}

// preflights looks now and then whether this guest would boot in the target.
func (a *Agent) preflights(ctx context.Context) error {
	for {
		found, err := preflightHere()
		if err != nil {
			a.log.Warn("it is not known whether this guest would boot in the target", "error", err.Error())
		}
		a.told.found(found)
		if !sleep(ctx, preflightEvery) {
			return nil
		}
	}
}
