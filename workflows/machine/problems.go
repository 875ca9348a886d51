package machine

import (
	"slices"

	"go.temporal.io/sdk/workflow"

	"drover/datapath/stream"
	"drover/workflows/api"
	"drover/workflows/call"
	"drover/workflows/fault"
)

// healthOf is the worst of the problems.
func healthOf(problems []api.Problem) api.Health {
	out := api.Healthy
	for _, p := range problems {
		if p.Health == api.Critical {
			return api.Critical
		}
		if p.Health == api.Warning {
			out = api.Warning
		}
	}
	return out
}

// raise enters a problem, once per code, and tells people when it is new.
func (e *entity) raise(ctx workflow.Context, p api.Problem) {
	if p.Since.IsZero() {
		p.Since = workflow.Now(ctx)
	}
	if p.Health == "" {
		p.Health = api.Warning
	}
	i := slices.IndexFunc(e.s.Problems, func(q api.Problem) bool { return q.Code == p.Code })
	if i >= 0 {
		p.Since = e.s.Problems[i].Since
		e.s.Problems[i] = p
		e.show(ctx)
		return
	}
	if len(e.s.Problems) >= maxProblems {
		e.s.Problems = e.s.Problems[1:]
	}
	e.s.Problems = append(e.s.Problems, p)
	e.show(ctx)
	n := api.Notification{Subject: e.s.Name + ": " + p.Cause, Problem: p, Machine: e.s.Machine}
	workflow.Go(ctx, func(ctx workflow.Context) {
		if err := call.Notify(ctx, n); err != nil {
			workflow.GetLogger(ctx).Warn("notification was not sent", "error", err)
		}
	})
}

// clear takes problems away, by code.
func (e *entity) clear(ctx workflow.Context, codes ...string) {
	before := len(e.s.Problems)
	e.s.Problems = slices.DeleteFunc(e.s.Problems, func(p api.Problem) bool { return slices.Contains(codes, p.Code) })
	if len(e.s.Problems) != before {
		e.show(ctx)
	}
}

// clearStream takes away all problems that a whole replication ends.
func (e *entity) clearStream(ctx workflow.Context) {
	e.clear(ctx, api.CodeSessionLost, api.CodeReplicaDamaged, api.CodeDiskChanged, api.CodeForcedShutdown,
		api.CodeDiffers, api.CodeMended, api.CodeResyncFailed, api.CodeServerLost, api.CodeNoServer, api.CodeNoAgent, api.CodeGroupMissed, api.CodeInternal)
}

// broken marks the machine for resync.
func (e *entity) broken(ctx workflow.Context, b stream.Broken) {
	e.raise(ctx, api.Problem{
		Code: b.Code, Component: "replication", Cause: b.Cause, Since: b.Since, Health: api.Critical, Failover: true,
		Action: "Mend the cause, then resynchronise (action resync). The recovery points there are stay usable.",
	})
	e.setState(ctx, api.StateResyncRequired)
}

// failed enters a problem from an error.
func (e *entity) failed(ctx workflow.Context, component, action string, err error) {
	e.raise(ctx, api.Problem{
		Code: codeOf(err), Component: component, Cause: fault.Message(err), Action: action, Health: api.Warning, Failover: true,
	})
}

func codeOf(err error) string {
	if code := fault.Code(err); code != "" {
		return code
	}
	return api.CodeInternal
}
