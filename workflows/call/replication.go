package call

import (
	"encoding/json"
	"time"

	"go.temporal.io/sdk/workflow"

	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/stream"
	"drover/workflows/api"
	"drover/workflows/fault"
)

// ChooseServer picks a process server or master target, and waits, at most for
// the limit, while there is none.
func ChooseServer(ctx workflow.Context, in api.ChooseServerInput, limit time.Duration) (api.Assignment, error) {
	o := control()
	o.ScheduleToCloseTimeout = limit
	o.WaitForCancellation = false // it changes nothing
	o.RetryPolicy = retry(backOffMost, 0)
	return run[api.Assignment](ctx, api.ActChooseServer, o, in)
}

// Assign tells the machine's agent where to stream.
func Assign(ctx workflow.Context, in api.AssignInput) error {
	return do(ctx, api.ActAssign, control(), in)
}

// Unassign makes all agents of the machine stand by.
func Unassign(ctx workflow.Context, in api.UnassignInput) error {
	return do(ctx, api.ActUnassign, control(), in)
}

// Fence raises the machine's epoch in store and cache: older writers are refused
// from then on.
func Fence(ctx workflow.Context, in api.FenceInput) error {
	return do(ctx, api.ActFence, control(), in)
}

// ListPoints lists the machine's recovery points in the vault's store.
func ListPoints(ctx workflow.Context, machine ident.MachineID) ([]replica.Point, error) {
	return run[[]replica.Point](ctx, api.ActListPoints, control(), machine)
}

// ListServers lists the process servers and master targets with their health.
func ListServers(ctx workflow.Context) ([]api.ServerStatus, error) {
	var out []api.ServerStatus
	err := workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, control()), api.ActListServers).Get(ctx, &out)
	return out, err
}

// HostListPoints lists the recovery points in a server's own store.
func HostListPoints(ctx workflow.Context, server string, machine ident.MachineID) ([]replica.Point, error) {
	return run[[]replica.Point](ctx, api.ActHostListPoints, host(server), machine)
}

// ChoosePoint resolves a choice of recovery point and holds the point.
func ChoosePoint(ctx workflow.Context, in api.ChoosePointInput) (replica.Point, error) {
	return run[replica.Point](ctx, api.ActChoosePoint, control(), in)
}

// ChooseCommonPoints gives the points that machines have in common, held; those of
// machines that have none are left out.
func ChooseCommonPoints(ctx workflow.Context, in api.ChooseCommonInput) ([]api.CommonPoint, error) {
	return run[[]api.CommonPoint](ctx, api.ActChooseCommon, control(), in)
}

// ReleasePoint ends a hold.
func ReleasePoint(ctx workflow.Context, in api.ReleasePointInput) error {
	return do(ctx, api.ActReleasePoint, control(), in)
}

// RemoveReplica deletes replica, points and cache objects. Large replicas take
// minutes to delete.
func RemoveReplica(ctx workflow.Context, in api.FenceInput) error {
	o := control()
	o.StartToCloseTimeout, o.HeartbeatTimeout = targetTimeout, controlBeat
	return do(ctx, api.ActRemoveReplica, o, in)
}

// Grant lets the machine stream to the server named in the assignment.
func Grant(ctx workflow.Context, in api.GrantInput) error {
	return do(ctx, api.ActGrant, hostLong(in.Assignment.Server), in)
}

// Revoke ends the machine's session on the server, finishes what was acknowledged
// and closes the replica; at most for the limit in all.
func Revoke(ctx workflow.Context, server string, in api.FenceInput, limit time.Duration) error {
	o := hostLong(server)
	o.ScheduleToCloseTimeout = limit
	return do(ctx, api.ActRevoke, o, in)
}

// Base runs a base pass to its end on the server. It goes on from where it was
// when tried again, so many tries do no harm; a server that is gone is noticed
// by its heartbeat and then by the task that nobody takes.
func Base(ctx workflow.Context, in api.BaseInput) (api.Transfer, error) {
	o := hostLong(in.Assignment.Server)
	o.StartToCloseTimeout = baseLongest
	o.RetryPolicy = retry(backOffMost, baseAttempts)
	return run[api.Transfer](ctx, api.ActBase, o, in)
}

// Replicate starts the watch of a machine's delta replication. Cancelling it ends
// the watch, not the stream. Few tries: after them the machine is to move.
func Replicate(ctx workflow.Context, in api.ReplicateInput) workflow.Future {
	o := hostLong(in.Assignment.Server)
	o.StartToCloseTimeout = streamLongest
	o.WaitForCancellation = false // it only watches
	o.RetryPolicy = retry(backOffMost, streamAttempts)
	return workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, o), api.ActReplicate, in)
}

// FinalCut makes the last recovery point; the source stays frozen until Release,
// so the tries are few.
func FinalCut(ctx workflow.Context, server string, in api.FenceInput) (replica.Point, error) {
	o := hostLong(server)
	o.RetryPolicy = retry(backOffMost, cutAttempts)
	return run[replica.Point](ctx, api.ActFinalCut, o, in)
}

// Verify compares a machine's source with its replica. A second try joins what the
// first one began; after a restart of the server it begins again. Cancelling it ends
// the comparison.
func Verify(ctx workflow.Context, in api.VerifyInput) (stream.SignedRecord, error) {
	o := hostLong(in.Server)
	o.StartToCloseTimeout = verifyLongest
	return run[stream.SignedRecord](ctx, api.ActVerify, o, in)
}

// Compare is Verify for those who go on only when source and replica are equal, or by now.
func Compare(ctx workflow.Context, in api.VerifyInput) error {
	signed, err := Verify(ctx, in)
	if err != nil {
		return err
	}
	verdict, err := verdictOf(signed)
	if err != nil {
		return fault.Wrap(api.CodeInternal, err, "the record of the comparison of %s cannot be read: %s", in.Name, err)
	}
	switch verdict {
	case stream.VerdictEqual, stream.VerdictMended, stream.VerdictUnsettled:
		return nil
	}
	return fault.New(api.CodeDiffers, "source and replica of %s differ (%s), and it could not be mended: resynchronise first", in.Name, verdict)
}

// verdictOf reads what the comparison came to; the same bytes give the same.
//
//workflowcheck:ignore
func verdictOf(signed stream.SignedRecord) (stream.Verdict, error) {
	var r stream.Record
	err := json.Unmarshal(signed.Record, &r)
	return r.Verdict, err
}

// Release thaws a source that a final cut left frozen.
func Release(ctx workflow.Context, server string, in api.FenceInput) error {
	return do(ctx, api.ActRelease, host(server), in)
}
