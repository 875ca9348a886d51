package replication

import (
	"context"
	"fmt"
	"log/slog"

	"drover/activities/activityerr"
	"drover/datapath/attest"
	"drover/datapath/stream"
	"drover/workflows/api"
)

// Verify compares a machine's source with its replica, and tells the entity when
// something differed. Ending the activity ends the comparison, unless somebody else
// waits for it too.
func (h *Host) Verify(ctx context.Context, in api.VerifyInput) (stream.SignedRecord, error) {
	ctx, stop := h.beating(ctx, in.Machine, nil)
	defer stop()
	if in.Server != h.Name {
		return stream.SignedRecord{}, activityerr.New(api.CodeInvalid, "compare %s with its replica: it is on %s, this is %s", in.Name, in.Server, h.Name)
	}
	signed, err := h.Streams.Verify(ctx, in.Machine, in.Epoch, stream.VerifyOrder{Deep: in.Deep, Rate: in.Rate})
	if err != nil {
		return signed, h.ended(ctx, err, "compare %s with its replica on %s", in.Name, h.Name)
	}
	record, err := attest.Read(signed)
	if err != nil {
		return signed, activityerr.Of(err, "compare %s with its replica on %s", in.Name, h.Name)
	}
	if e, ok := h.incident(record); ok {
		h.tell(ctx, in, e)
	}
	return signed, nil
}

// incident is what the entity is told of a comparison. That a replica could be mended is
// no reason to forget that it had to be. A machine that is marked for resync is known by
// its watch.
func (h *Host) incident(r stream.Record) (e api.ReplicationEvent, ok bool) {
	switch r.Verdict {
	case stream.VerdictEqual:
		return api.ReplicationEvent{Problem: api.Problem{Code: api.CodeMended}, Cleared: true}, true
	case stream.VerdictMended:
		return api.ReplicationEvent{Problem: api.Problem{
			Code: api.CodeMended, Component: h.component(), Health: api.Warning, Since: r.Finished,
			Cause:    fmt.Sprintf("a comparison with the source found %d bytes in the replica that differed though nothing was under way; they were sent again", r.Differed()),
			Evidence: fmt.Sprintf("the signed record of recovery point %d", r.Point),
			Action:   "older recovery points may have the difference; look for its cause (the tracker, the storage under the replica) and compare again, with --deep",
		}}, true
	}
	return e, false
}

// tell tells the entity; the record says it too.
func (h *Host) tell(ctx context.Context, in api.VerifyInput, e api.ReplicationEvent) {
	if err := h.signalEntity(ctx, api.MachineWorkflowID(in.Machine), e); err != nil {
		h.Logger.Warn("the machine's workflow could not be told of the comparison", slog.String("machine", in.Machine.String()), slog.String("error", err.Error()))
	}
}
