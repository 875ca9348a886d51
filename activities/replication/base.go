package replication

import (
	"context"
	"errors"
	"sync"
	"time"

	"drover/activities/activityerr"
	"drover/datapath/replica"
	"drover/datapath/stream"
	"drover/workflows/api"
)

// baseMark stands in the heartbeats of a base pass, so that a second try does not
// begin another generation.
type baseMark struct {
	// Wanted is the lowest generation whose completion is the end of this pass.
	Wanted uint32 `json:"wanted"`
}

// base is one run of the activity.
type base struct {
	*Host
	in api.BaseInput

	mu   sync.Mutex
	mark *baseMark // nil: not begun
}

// Base runs a base pass to its end. A second try goes on with the generation that
// the first one began. Ending the activity does not end the pass.
func (h *Host) Base(ctx context.Context, in api.BaseInput) (api.Transfer, error) {
	b := &base{Host: h, in: in, mark: lastPulse(ctx).Base}
	ctx, stop := h.beating(ctx, in.Machine, b.heartbeatMark)
	defer stop()
	// Granting again changes nothing, and makes a server that has just started open
	// the replica: only then its status says where the base stands.
	if err := h.grant(ctx, in.GrantInput); err != nil {
		return api.Transfer{}, h.ended(ctx, err, "begin the base pass of %s", in.Name)
	}
	if err := b.begin(ctx); err != nil {
		return api.Transfer{}, h.ended(ctx, err, "begin the base pass of %s on %s", in.Name, h.Name)
	}
	st, err := b.await(ctx)
	if err != nil {
		return api.Transfer{}, h.ended(ctx, err, "base pass of %s on %s", in.Name, h.Name)
	}
	return transferOf(st, in.Cause), nil
}

func (b *base) heartbeatMark(p *pulse) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p.Base = b.mark
}

// begin asks for a new generation, unless an earlier try has. The mark goes out
// before the request, so that the request is never made twice unknowingly.
func (b *base) begin(ctx context.Context) error {
	st, err := b.Streams.Status(b.in.Machine)
	if err != nil {
		return err
	}
	if b.mark != nil && b.in.NewGeneration && st.Generation >= b.mark.Wanted && st.Broken == nil {
		return nil
	}
	mark := &baseMark{Wanted: st.Generation}
	if b.in.NewGeneration && (st.Complete || st.Generation == 0) {
		mark.Wanted++
	}
	b.mu.Lock()
	b.mark = mark
	b.mu.Unlock()
	if !b.in.NewGeneration {
		return nil
	}
	b.beat(ctx, b.in.Machine, b.heartbeatMark)
	return b.Streams.StartBase(ctx, b.in.Machine, b.in.Assignment.Epoch, b.in.Cause, b.in.Rescan)
}

// await waits for the wanted generation to be complete with a recovery point.
func (b *base) await(ctx context.Context) (stream.Status, error) {
	ticker := time.NewTicker(b.basePoll)
	defer ticker.Stop()
	for {
		st, err := b.own(b.in.GrantInput)
		switch {
		case err != nil:
			return st, err
		case st.Broken != nil:
			return st, brokenError(b.in.Name, *st.Broken)
		case st.Complete && st.Points > 0 && st.Generation >= b.mark.Wanted:
			return st, nil
		}
		select {
		case <-ctx.Done():
			return st, ctx.Err()
		case <-ticker.C:
		}
	}
}

// own gives the status of a stream that is still this activity's own: one that
// was withdrawn or given to a newer epoch is not.
func (h *Host) own(in api.GrantInput) (stream.Status, error) {
	st, err := h.Streams.Status(in.Machine)
	switch {
	case errors.Is(err, replica.ErrNotFound):
		return st, activityerr.Wrap(api.CodeFenced, err, "%s streams to %s no more: its grant of epoch %d was withdrawn", in.Name, h.Name, in.Assignment.Epoch)
	case err == nil && st.Epoch != in.Assignment.Epoch:
		return st, activityerr.New(api.CodeFenced, "%s streams to %s in epoch %d now, not %d", in.Name, h.Name, st.Epoch, in.Assignment.Epoch)
	}
	return st, activityerr.Of(err, "look for the stream of %s on %s", in.Name, h.Name)
}

// brokenError gives a broken stream's own code, if it is one of ours that a retry
// cannot mend.
func brokenError(name string, broken stream.Broken) error {
	code := broken.Code
	if !api.MarksForResync(code) {
		code = api.CodeResyncFailed
	}
	return activityerr.New(code, "the base pass of %s broke at %s: %s; resync the machine", name, broken.Since.UTC().Format(time.RFC3339), broken.Cause)
}

// transferOf says what a finished base pass moved.
func transferOf(st stream.Status, cause string) api.Transfer {
	t := api.Transfer{DataBytes: st.BaseDataBytes, WireBytes: st.BaseWireBytes, Cause: cause}
	for _, d := range st.Disks {
		t.DiskBytes += d.Size
	}
	if st.BaseFinished.After(st.BaseStarted) && !st.BaseStarted.IsZero() {
		t.Took = api.Duration(st.BaseFinished.Sub(st.BaseStarted))
	}
	return t
}
