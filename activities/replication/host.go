package replication

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.temporal.io/sdk/activity"

	"drover/activities/activityerr"
	"drover/datapath/changeset"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/stream"
	"drover/datapath/throttle"
	"drover/workflows/api"
)

// Cadences of the host's activities.
const (
	// beatEvery is how often stream.Status goes out as heartbeat. The worker's
	// throttle must not be longer.
	beatEvery = 2 * time.Second
	// Of more activities than these each waits longer, up to beatSlowest times as long:
	// every heartbeat is a write of Temporal's, and two thousand machines that beat every
	// other second would leave its database no time for anything else.
	beatsFull   = 20
	beatSlowest = 4
	basePoll    = 500 * time.Millisecond
	watchPoll   = time.Second
	signalWait  = 5 * time.Second // one try to tell the entity of an event
	cutDefault  = 5 * time.Minute // cadence of a policy that says none
)

// Signaller sends signals; a Temporal client is one.
type Signaller interface {
	SignalWorkflow(ctx context.Context, workflowID, runID, signalName string, arg any) error
}

// HostConfig of the activities of a process server or master target.
type HostConfig struct {
	Name    string // of the server
	Role    ident.Role
	Streams stream.Streams
	Store   replica.Store
	// CurrentKey names the data key new change sets of the machine are encrypted with.
	CurrentKey func(context.Context, ident.MachineID) (string, error)
	Signals    Signaller
	Logger     *slog.Logger
}

// Host has the activities that run on a process server or master target. None of
// them is in the way of the data: a stream goes on when they end.
type Host struct {
	HostConfig
	beatEvery, basePoll, watchPoll time.Duration
	beats                          atomic.Int64 // activities that beat
}

// NewHost makes the activities.
func NewHost(c HostConfig) *Host {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return &Host{HostConfig: c, beatEvery: beatEvery, basePoll: basePoll, watchPoll: watchPoll}
}

// Activities gives the functions by their activity type.
func (h *Host) Activities() map[string]any {
	return map[string]any{
		api.ActGrant:          h.Grant,
		api.ActRevoke:         h.Revoke,
		api.ActBase:           h.Base,
		api.ActReplicate:      h.Replicate,
		api.ActFinalCut:       h.FinalCut,
		api.ActRelease:        h.Release,
		api.ActVerify:         h.Verify,
		api.ActHostListPoints: h.ListPoints,
	}
}

// Grant lets the machine stream to this server.
func (h *Host) Grant(ctx context.Context, in api.GrantInput) error {
	ctx, stop := h.beating(ctx, in.Machine, nil)
	defer stop()
	return h.grant(ctx, in)
}

func (h *Host) grant(ctx context.Context, in api.GrantInput) error {
	if in.Machine.IsZero() || in.Assignment.Epoch == 0 || in.Assignment.Instance == "" || len(in.Disks) == 0 {
		return activityerr.New(api.CodeInvalid, "grant %s: machine, epoch, instance and disks are needed", in.Name)
	}
	if in.Assignment.Server != h.Name {
		return activityerr.New(api.CodeInvalid, "grant %s: it is assigned to %s, this is %s", in.Name, in.Assignment.Server, h.Name)
	}
	g, err := h.grantOf(ctx, in)
	if err != nil {
		return err
	}
	return activityerr.Of(h.Streams.Grant(ctx, g), "let %s stream to %s in epoch %d", in.Name, h.Name, g.Epoch)
}

// grantOf builds the grant that the data path keeps on disk.
func (h *Host) grantOf(ctx context.Context, in api.GrantInput) (stream.Grant, error) {
	key, err := h.CurrentKey(ctx, in.Machine)
	if err != nil {
		return stream.Grant{}, activityerr.Of(err, "ask the configuration server for the data key of %s", in.Name)
	}
	documents, err := documentsOf(in)
	if err != nil {
		return stream.Grant{}, err
	}
	disks := make([]replica.Disk, len(in.Disks))
	for i, d := range in.Disks {
		disks[i] = replica.Disk{Disk: changeset.Disk{ID: d.ID, Size: d.Size}, Name: d.Label, BackingUUID: d.BackingUUID}
	}
	g := stream.Grant{
		Epoch: in.Assignment.Epoch, Instance: in.Assignment.Instance,
		Spec:      replica.Spec{Machine: in.Machine, Name: in.Name, Disks: disks, KeyID: key, Documents: documents},
		Cut:       in.Policy.CutInterval.D(),
		App:       in.Policy.AppConsistentEvery.D(),
		Group:     in.Policy.ConsistencyGroup.Stream(),
		LossLimit: in.Policy.Resync.AfterDisconnect.D(),
		Retention: in.Policy.Retention, Compression: in.Policy.Compression,
		Attached: in.Attached,
		Throttle: in.Policy.Throttle,
	}
	if _, err := throttle.Compile(g.Throttle); err != nil {
		return stream.Grant{}, activityerr.Wrap(api.CodeInvalid, err, "grant %s: policy %s: %v", in.Name, in.Policy.Name, err)
	}
	if g.Cut == 0 {
		g.Cut = cutDefault
	}
	if g.Retention.Keep == 0 {
		g.Retention = replica.DefaultRetention()
	}
	return g, nil
}

// documentsOf gives what the manifest keeps for recovery without a control plane.
func documentsOf(in api.GrantInput) (map[string]string, error) {
	out := map[string]string{}
	for name, value := range map[string]any{"policy": in.Policy, "target": in.Target} {
		b, err := json.Marshal(value)
		if err != nil {
			return nil, activityerr.Wrap(api.CodeInvalid, err, "write the %s of %s for its manifest: %v", name, in.Name, err)
		}
		out[name] = string(b)
	}
	return out, nil
}

// grantIfNeeded lets the machine stream unless it is let in this epoch already.
func (h *Host) grantIfNeeded(ctx context.Context, in api.GrantInput) error {
	st, err := h.Streams.Status(in.Machine)
	switch {
	case err == nil && st.Epoch == in.Assignment.Epoch:
		return nil
	case err == nil || errors.Is(err, replica.ErrNotFound):
		return h.grant(ctx, in)
	}
	return activityerr.Of(err, "look for the stream of %s on %s", in.Name, h.Name)
}

// Revoke ends the machine's session, finishes what was acknowledged and closes
// the replica.
func (h *Host) Revoke(ctx context.Context, in api.FenceInput) error {
	ctx, stop := h.beating(ctx, in.Machine, nil)
	defer stop()
	return h.ended(ctx, h.Streams.Revoke(ctx, in.Machine, in.Epoch), "end the stream of machine %s on %s", in.Machine, h.Name)
}

// FinalCut makes the last recovery point; the source stays frozen until Release.
func (h *Host) FinalCut(ctx context.Context, in api.FenceInput) (replica.Point, error) {
	ctx, stop := h.beating(ctx, in.Machine, nil)
	defer stop()
	point, err := h.Streams.Cut(ctx, in.Machine, in.Epoch, true)
	return point, h.ended(ctx, err, "make the final recovery point of machine %s on %s", in.Machine, h.Name)
}

// Release thaws a source that a final cut left frozen.
func (h *Host) Release(ctx context.Context, in api.FenceInput) error {
	return activityerr.Of(h.Streams.Release(ctx, in.Machine, in.Epoch), "release the source of machine %s on %s", in.Machine, h.Name)
}

// ListPoints lists the recovery points in this server's own store.
func (h *Host) ListPoints(ctx context.Context, machine ident.MachineID) ([]replica.Point, error) {
	return listPoints(ctx, h.Store, machine)
}

var errStopping = errors.New("the server's service is stopping; its streams go on when it is back")

// pulse is a heartbeat: the stream's status, which operators see, and what the
// next try of the activity must know. It reads as a stream.Status too.
type pulse struct {
	stream.Status
	Base  *baseMark  `json:"base,omitempty"`
	Watch *watchMark `json:"watch,omitempty"`
}

// lastPulse gives the last heartbeat of an earlier try; one that cannot be read
// is none, which is never wrong, only slower.
func lastPulse(ctx context.Context) (last pulse) {
	if !activity.HasHeartbeatDetails(ctx) || activity.GetHeartbeatDetails(ctx, &last) != nil {
		return pulse{}
	}
	return last
}

// beating gives a context that also ends when the worker stops, and heartbeats
// the stream's status until stop is called. mark, if any, adds to the heartbeats.
func (h *Host) beating(ctx context.Context, machine ident.MachineID, mark func(*pulse)) (beating context.Context, stop func()) {
	beating, cancel := context.WithCancelCause(ctx)
	var beats sync.WaitGroup
	beats.Go(func() {
		h.beats.Add(1)
		defer h.beats.Add(-1)
		for {
			h.beat(ctx, machine, mark)
			select {
			case <-beating.Done():
				return
			case <-activity.GetWorkerStopChannel(ctx):
				cancel(errStopping)
				return
			case <-time.After(h.pause()):
			}
		}
	})
	return beating, func() { cancel(nil); beats.Wait() }
}

// pause is how long an activity waits until its next heartbeat.
func (h *Host) pause() time.Duration { return pauseOf(h.beatEvery, h.beats.Load()) }

// BeatPause is how long each of a host's n activities waits between two heartbeats: 2 s
// if they are few, 8 s from 80 on. The heartbeat timeout is 20 s.
func BeatPause(n int) time.Duration { return pauseOf(beatEvery, int64(n)) }

func pauseOf(every time.Duration, n int64) time.Duration {
	return min(max(every, every*time.Duration(n)/beatsFull), beatSlowest*every)
}

func (h *Host) beat(ctx context.Context, machine ident.MachineID, mark func(*pulse)) {
	st, err := h.Streams.Status(machine)
	if err != nil {
		st = stream.Status{Machine: machine} // not granted: we still live
	}
	p := pulse{Status: st}
	if mark != nil {
		mark(&p)
	}
	if ctx.Err() != nil {
		return // nobody listens any more
	}
	activity.RecordHeartbeat(ctx, p)
}

// ended gives the error of an activity its code. One that ended because the
// worker stops is tried again; one that was cancelled says so.
func (h *Host) ended(ctx context.Context, err error, doing string, args ...any) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(context.Cause(ctx), errStopping):
		return activityerr.Wrap(api.CodeServerLost, errStopping, "%s: %v", h.Name, errStopping)
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return activityerr.Of(err, doing, args...)
}
