// Package call has one typed function per activity, with the options it runs
// under and why. Workflows call activities only through it, so that a timeout
// or a retry policy is decided in one place.
//
// Three rules hold for all. Retries are bounded and never repeat a permanent
// error (api/errors.go). Long activities heartbeat, so that a lost host is
// noticed. A call that changes something is waited for when it is cancelled
// ("settled"), so that its undo never runs beside it.
package call

import (
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
)

// Bounds of the calls.
const (
	quickTimeout  = 30 * time.Second // one try of a call that only asks or writes a record
	quickAttempts = 10               // about 3 minutes with the back-off below
	backOffFirst  = time.Second
	backOffMost   = 30 * time.Second

	// hostPickup is how long a host may leave a task in its queue before it counts
	// as lost: a restart of its service takes seconds.
	hostPickup     = time.Minute
	hostTimeout    = 10 * time.Minute // of one try; a revoke finishes what was acknowledged
	hostAttempts   = 5
	cutAttempts    = 4
	beat           = 20 * time.Second // heartbeat timeout on hosts, which beat every 2 s
	verifyLongest  = 30 * 24 * time.Hour
	streamAttempts = 3 // then the machine moves to another server
	streamLongest  = 365 * 24 * time.Hour
	baseLongest    = 30 * 24 * time.Hour
	baseAttempts   = 20

	controlBeat = 20 * time.Second // heartbeat timeout on the control queue, where the beat is 5 s

	vcenterTimeout  = 10 * time.Minute // one try: attaching disks and power operations are vCenter tasks
	vcenterAttempts = 8
	vcenterBackOff  = time.Minute
	inventoryLimit  = 10 * time.Minute

	vaultTurn  = 5 * time.Minute // with the wait for one's turn
	resyncLook = 3 * time.Minute // every marked machine is asked

	targetTimeout  = 15 * time.Minute
	targetAttempts = 6
	createTimeout  = 6 * time.Hour // making disks from a point copies them
	createAttempts = 5

	actionOfMachine  = 7 * 24 * time.Hour // a machine's longest action, a reprotect
	actionReconnects = 1000               // waits that were cut short and taken up again
)

// retry makes a policy that never repeats a permanent error.
func retry(most time.Duration, attempts int32) *temporal.RetryPolicy {
	return &temporal.RetryPolicy{
		InitialInterval:        backOffFirst,
		BackoffCoefficient:     2,
		MaximumInterval:        most,
		MaximumAttempts:        attempts,
		NonRetryableErrorTypes: api.PermanentCodes(),
	}
}

// control: a short call on the configuration server.
func control() workflow.ActivityOptions {
	return workflow.ActivityOptions{
		TaskQueue:           api.ControlQueue,
		StartToCloseTimeout: quickTimeout,
		WaitForCancellation: true,
		RetryPolicy:         retry(backOffMost, quickAttempts),
	}
}

// host: a short call on one process server or master target. When it does not
// take the task in time the call fails with a timeout, and the caller decides.
func host(server string) workflow.ActivityOptions {
	return workflow.ActivityOptions{
		TaskQueue:              api.HostQueue(server),
		ScheduleToStartTimeout: hostPickup,
		StartToCloseTimeout:    quickTimeout,
		WaitForCancellation:    true,
		RetryPolicy:            retry(backOffMost, hostAttempts),
	}
}

// hostLong: a call on a host that takes as long as it takes. It beats, so that a
// host that died is noticed at once.
func hostLong(server string) workflow.ActivityOptions {
	o := host(server)
	o.StartToCloseTimeout, o.HeartbeatTimeout = hostTimeout, beat
	return o
}

// run executes the activity and reads its result.
func run[Out any](ctx workflow.Context, name string, o workflow.ActivityOptions, in any) (Out, error) {
	var out Out
	err := workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, o), name, in).Get(ctx, &out)
	return out, err
}

// do executes an activity that has no result.
func do(ctx workflow.Context, name string, o workflow.ActivityOptions, in any) error {
	return workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, o), name, in).Get(ctx, nil)
}
