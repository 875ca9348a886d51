package call

import (
	"time"

	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
	"drover/workflows/fault"
)

// target: an operation on the target side. Clouds throttle and are busy for minutes.
func target() workflow.ActivityOptions {
	o := control()
	o.StartToCloseTimeout, o.HeartbeatTimeout = targetTimeout, controlBeat
	o.RetryPolicy = retry(backOffMost, targetAttempts)
	return o
}

// CheckNetwork checks a target network before anything is made in it.
func CheckNetwork(ctx workflow.Context, in api.CheckNetworkInput) error {
	return do(ctx, api.ActCheckNetwork, target(), in)
}

// precheckAttempts is little: it only advises, and somebody waits for it.
const precheckAttempts = 2

// Precheck asks the target what it would refuse of a machine's failover, and makes nothing.
func Precheck(ctx workflow.Context, in api.PrecheckInput) error {
	o := target()
	o.StartToCloseTimeout, o.WaitForCancellation = quickTimeout, false
	o.RetryPolicy = retry(backOffMost, precheckAttempts)
	wanted, err := run[api.CheckNetworkInput](ctx, api.ActTargetOf, o, in)
	if err != nil {
		return err
	}
	return do(ctx, api.ActCheckNetwork, o, wanted)
}

// CreateMachine makes a machine with disks from a recovery point, not started.
// What an earlier try made is found by its tags.
func CreateMachine(ctx workflow.Context, in api.CreateMachineInput) (api.TargetMachine, error) {
	o := target()
	o.StartToCloseTimeout = createTimeout
	o.RetryPolicy = retry(backOffMost, createAttempts)
	return run[api.TargetMachine](ctx, api.ActCreateMachine, o, in)
}

// StartMachine starts a target machine.
func StartMachine(ctx workflow.Context, in api.TargetRef) (api.TargetMachine, error) {
	return run[api.TargetMachine](ctx, api.ActStartMachine, target(), in)
}

// StopMachine stops a target machine.
func StopMachine(ctx workflow.Context, in api.TargetRef) error {
	return do(ctx, api.ActStopMachine, target(), in)
}

// DeleteMachine deletes all that carries the machine's tags.
func DeleteMachine(ctx workflow.Context, in api.TargetRef) error {
	return do(ctx, api.ActDeleteMachine, target(), in)
}

// CommitMachine deletes what a machine that stays does not need any more.
func CommitMachine(ctx workflow.Context, in api.TargetRef) error {
	return do(ctx, api.ActCommitMachine, target(), in)
}

// relayLimit is for a machine to be made, booted and heard of, behind others who wait for
// the same.
const relayLimit = time.Hour

// AcquireRelay has a temporary process server in the target, for this machine too.
func AcquireRelay(ctx workflow.Context, in api.RelayInput) (api.Relay, error) {
	o := target()
	o.StartToCloseTimeout = relayLimit
	return run[api.Relay](ctx, api.ActAcquireRelay, o, in)
}

// ReleaseRelay lets go of it; the last machine that does so deletes it.
func ReleaseRelay(ctx workflow.Context, in api.RelayInput) error {
	o := target()
	o.StartToCloseTimeout = relayLimit
	return do(ctx, api.ActReleaseRelay, o, in)
}

// A started machine gets this long to pass its health check.
const (
	checkLimit = 10 * time.Minute
	checkEvery = 10 * time.Second
)

// CheckMachine waits until a started machine passes its health check, and fails
// with api.CodeTarget and the evidence when it does not in time.
func CheckMachine(ctx workflow.Context, in api.TargetRef) error {
	until := workflow.Now(ctx).Add(checkLimit)
	for {
		r, err := run[api.CheckResult](ctx, api.ActCheckMachine, target(), in)
		switch {
		case err != nil:
			return err
		case r.Ready:
			return nil
		case workflow.Now(ctx).Add(checkEvery).After(until):
			return fault.New(api.CodeTarget, "machine %s does not pass its health check after %s: %s; look at its console", in.Name, checkLimit, r.Evidence)
		}
		if err := workflow.Sleep(ctx, checkEvery); err != nil {
			return err
		}
	}
}
