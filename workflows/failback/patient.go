package failback

import (
	"time"

	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
	"drover/workflows/fault"
	"drover/workflows/runbook"
)

// Bounds of waiting for a vCenter. The way back is nobody's emergency: the machine runs in
// the target, and putting back what was done would need the same vCenter.
const (
	vcenterPatience = 24 * time.Hour
	vcenterPause    = time.Minute // beside the retries of each call, some three minutes
)

// changePatient is since when the way back waits for a vCenter that does not answer.
const changePatient = "patient"

// patient does what asks vCenter, and waits while that does not answer. Why shows in the
// machine's status.
func patient(ctx workflow.Context, do func(workflow.Context) error) error {
	err := do(ctx)
	if !isAway(err) || workflow.GetVersion(ctx, changePatient, workflow.DefaultVersion, 1) == workflow.DefaultVersion {
		return err
	}
	since := workflow.Now(ctx)
	for isAway(err) && workflow.Now(ctx).Sub(since) < vcenterPatience {
		runbook.Note(ctx, "waiting for vCenter since "+since.UTC().Format(time.RFC3339)+": "+fault.Message(err))
		if err := workflow.Sleep(ctx, vcenterPause); err != nil {
			return err
		}
		err = do(ctx)
	}
	if err == nil {
		runbook.Note(ctx, "vCenter answers again")
	}
	return err
}

func isAway(err error) bool { return err != nil && fault.Code(err) == api.CodeVCenterAway }
