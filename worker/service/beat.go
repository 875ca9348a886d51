package service

import (
	"context"
	"slices"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/interceptor"
)

// beatEvery is how often an activity's life is told; heartbeat timeouts are several
// times longer.
const beatEvery = 5 * time.Second

// Beating makes a worker's activities heartbeat by themselves where the workflow
// wants it, so that the death of the worker is noticed in seconds, however long the
// activity may take. The named ones are left alone: they beat themselves, with
// details that the next try needs.
func Beating(except ...string) interceptor.WorkerInterceptor {
	return &beating{except: except}
}

type beating struct {
	interceptor.WorkerInterceptorBase
	except []string
}

// InterceptActivity is called by the SDK.
func (b *beating) InterceptActivity(_ context.Context, next interceptor.ActivityInboundInterceptor) interceptor.ActivityInboundInterceptor {
	in := &beatingActivity{except: b.except}
	in.Next = next
	return in
}

type beatingActivity struct {
	interceptor.ActivityInboundInterceptorBase
	except []string
}

// ExecuteActivity is called by the SDK.
func (b *beatingActivity) ExecuteActivity(ctx context.Context, in *interceptor.ExecuteActivityInput) (any, error) {
	info := activity.GetInfo(ctx)
	if info.HeartbeatTimeout > 0 && !slices.Contains(b.except, info.ActivityType.Name) {
		done, ended := make(chan struct{}), make(chan struct{})
		go func() { defer close(ended); beat(ctx, done) }()
		defer func() { close(done); <-ended }()
	}
	return b.Next.ExecuteActivity(ctx, in)
}

func beat(ctx context.Context, done <-chan struct{}) {
	ticker := time.NewTicker(beatEvery)
	defer ticker.Stop()
	for {
		select {
		case <-done:
			return
		case <-ctx.Done():
			return
		case <-ticker.C:
			activity.RecordHeartbeat(ctx)
		}
	}
}
