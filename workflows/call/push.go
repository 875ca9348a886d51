package call

import (
	"time"

	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
)

const pushLimit = 15 * time.Minute // a copy over a slow line

// Push installs the agent in a guest. One try: somebody waits, and the next finds what
// was done.
func Push(ctx workflow.Context, in api.PushInput) (api.PushResult, error) {
	o := control()
	o.StartToCloseTimeout, o.HeartbeatTimeout = pushLimit, controlBeat
	o.RetryPolicy = retry(backOffMost, 1)
	return run[api.PushResult](ctx, api.ActPush, o, in)
}
