package replication

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"go.temporal.io/api/serviceerror"

	"drover/datapath/ident"
	"drover/datapath/stream"
	"drover/workflows/api"
)

// What the entity was told of the RPO last.
const (
	rpoUntold = "" // by this watch; the entity may know of it from an earlier one
	rpoOver   = "over"
	rpoWithin = "within"
)

// watchMark stands in the heartbeats of the watch.
type watchMark struct {
	RPO string `json:"rpo,omitempty"`
	// Missed is why the machine misses the rounds of its group, as the entity knows it.
	Missed string `json:"missed,omitempty"`
	// Looked: the entity was told of the group once by this watch or an earlier one.
	Looked bool `json:"looked,omitempty"`
}

// watch is one run of the activity.
type watch struct {
	*Host
	in api.ReplicateInput

	mu   sync.Mutex
	mark watchMark
}

// Replicate watches a machine's delta replication: heartbeats its status, tells
// the entity when the RPO passes its threshold and when it is back, and returns
// when the machine is marked for resync. Ending the watch does not end the stream.
func (h *Host) Replicate(ctx context.Context, in api.ReplicateInput) (api.ReplicateResult, error) {
	w := &watch{Host: h, in: in}
	if last := lastPulse(ctx).Watch; last != nil {
		w.mark = *last
	}
	ctx, stop := h.beating(ctx, in.Machine, w.heartbeatMark)
	defer stop()
	if err := h.grantIfNeeded(ctx, in.GrantInput); err != nil {
		return api.ReplicateResult{}, h.ended(ctx, err, "watch the replication of %s", in.Name)
	}
	st, err := w.run(ctx)
	return api.ReplicateResult{Broken: st.Broken, Status: st}, h.ended(ctx, err, "watch the replication of %s on %s", in.Name, h.Name)
}

func (w *watch) heartbeatMark(p *pulse) {
	w.mu.Lock()
	defer w.mu.Unlock()
	mark := w.mark
	p.Watch = &mark
}

func (w *watch) run(ctx context.Context) (stream.Status, error) {
	ticker := time.NewTicker(w.watchPoll)
	defer ticker.Stop()
	for {
		st, err := w.own(w.in.GrantInput)
		if err != nil || st.Broken != nil {
			return st, err
		}
		w.checkRPO(ctx, st)
		w.checkGroup(ctx, st)
		select {
		case <-ctx.Done():
			return st, ctx.Err()
		case <-ticker.C:
		}
	}
}

// checkRPO tells the entity when the RPO has changed sides. What could not be
// told is told at the next look. It is back within the threshold only at three
// quarters of it, so that an RPO around the threshold does not flood the history.
func (w *watch) checkRPO(ctx context.Context, st stream.Status) {
	threshold := w.in.RPOThreshold.D()
	if threshold <= 0 || st.Phase != stream.PhaseDelta || st.StoredTime.IsZero() {
		return
	}
	rpo := st.ServerTime.Sub(st.StoredTime)
	now := rpoWithin
	if rpo > threshold || (w.mark.RPO == rpoOver && rpo > threshold/4*3) {
		now = rpoOver
	}
	if now == w.mark.RPO {
		return
	}
	if err := w.signalEntity(ctx, w.in.Workflow, w.event(st, rpo, now)); err != nil {
		w.Logger.Warn("the machine's workflow could not be told of its RPO; trying again",
			slog.String("machine", w.in.Machine.String()), slog.String("error", err.Error()))
		return
	}
	w.mu.Lock()
	w.mark.RPO = now
	w.mu.Unlock()
}

func (w *watch) event(st stream.Status, rpo time.Duration, now string) api.ReplicationEvent {
	link := "the agent is connected"
	if !st.Connected {
		link = fmt.Sprintf("the agent is not connected, last seen %s", st.LastSeen.UTC().Format(time.RFC3339))
	}
	return api.ReplicationEvent{
		Cleared: now == rpoWithin,
		Problem: api.Problem{
			Code: api.CodeRPO, Component: w.component(), Health: api.Warning, Since: st.ServerTime,
			Cause: fmt.Sprintf("the newest stored data is %s old, the policy's threshold is %s",
				rpo.Round(time.Second), w.in.RPOThreshold),
			Evidence: fmt.Sprintf("%s; %d change sets (%d bytes) wait to be stored or applied", link, st.BacklogSets, st.BacklogBytes),
			Action:   "check the machine's connection to the server, the server's load and the bandwidth to the cache",
		},
	}
}

// component names the server in a problem.
func (h *Host) component() string {
	if h.Role == ident.RoleMasterTarget {
		return "master target " + h.Name
	}
	return "process server " + h.Name
}

// signalEntity tells the entity; one that has ended need not be told.
func (h *Host) signalEntity(ctx context.Context, workflow string, e api.ReplicationEvent) error {
	ctx, cancel := context.WithTimeout(ctx, signalWait)
	defer cancel()
	err := h.Signals.SignalWorkflow(ctx, workflow, "", api.SignalReplicationEvent, e)
	var gone *serviceerror.NotFound
	if errors.As(err, &gone) {
		return nil
	}
	return err
}
