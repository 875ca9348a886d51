package azure

import (
	"context"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"

	"drover/activities/target"
)

// await begins an operation, or goes on with the one that an earlier try began, and
// waits for its end. Its resume token is in the heartbeat meanwhile. begin gets the
// token, "" to begin.
func await[T any](ctx context.Context, c *Cloud, about string, begin func(token string) (*runtime.Poller[T], error)) (T, error) {
	journal := target.JournalOf(ctx)
	if token := journal.Operation(about); token != "" {
		out, err := resume(ctx, c, token, begin)
		if err == nil {
			journal.Ended(about)
			return out, nil
		}
		if ctx.Err() != nil {
			return out, err // the operation goes on, for the next try
		}
		journal.Ended(about)
		if !notFound(err) {
			return out, err
		}
		// Azure has forgotten it: it ended long ago, and doing it again changes nothing.
	}
	var none T
	p, err := begin("")
	if err != nil {
		return none, err
	}
	if token, err := p.ResumeToken(); err == nil { // one that has ended has none
		journal.Begun(about, token)
	}
	out, err := p.PollUntilDone(ctx, &runtime.PollUntilDoneOptions{Frequency: c.Poll})
	if ctx.Err() == nil {
		journal.Ended(about)
	}
	return out, err
}

func resume[T any](ctx context.Context, c *Cloud, token string, begin func(string) (*runtime.Poller[T], error)) (T, error) {
	p, err := begin(token)
	if err != nil {
		var none T
		return none, err
	}
	return p.PollUntilDone(ctx, &runtime.PollUntilDoneOptions{Frequency: c.Poll})
}
