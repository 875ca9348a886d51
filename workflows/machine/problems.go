package machine

import (
	"slices"
	"strings"

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
	p = p.Complete()
	p.Evidence, p.Action = e.named(p.Evidence), e.named(p.Action)
	p.Failover = e.failoverPossible(p.Code)
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
	e.aside(ctx, func(ctx workflow.Context) {
		if err := call.Notify(ctx, n); err != nil {
			workflow.GetLogger(ctx).Warn("notification was not sent", "error", err)
		}
	})
}

// named puts the machine's name into a text of the catalogue.
func (e *entity) named(text string) string { return strings.ReplaceAll(text, "NAME", e.s.Name) }

// failoverPossible reports whether the machine can be failed over to a recovery point it
// has in spite of an error.
func (e *entity) failoverPossible(code string) bool {
	switch e.s.State {
	case api.StateProtected, api.StateResyncRequired, api.StateResyncing, api.StatePaused:
		return !e.reverse() && api.Explain(code).Failover != api.FailoverBlocked
	}
	return false // it has no point yet, or does not run at the source
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
	e.s.Forced = nil
	e.clear(ctx, api.CodeSessionLost, api.CodeReplicaDamaged, api.CodeDiskChanged, api.CodeForcedShutdown,
		api.CodeDiffers, api.CodeMended, api.CodeResyncFailed, api.CodeResyncPaused, api.CodeServerLost, api.CodeNoServer, api.CodeNoAgent, api.CodeGroupMissed, api.CodeInternal)
}

// judgeVersion says that the servers do not take the agent's version, until they do.
func (e *entity) judgeVersion(ctx workflow.Context, r api.AgentReport) {
	if r.Refused == "" {
		e.clear(ctx, api.CodeAgentVersion)
		return
	}
	e.raise(ctx, api.Problem{Code: api.CodeAgentVersion, Component: "agent", Cause: r.Refused, Health: api.Critical})
}

// broken marks the machine for resync.
func (e *entity) broken(ctx workflow.Context, b stream.Broken) {
	e.raise(ctx, api.Problem{
		Code: b.Code, Component: "replication", Cause: b.Cause, Since: b.Since, Health: api.Critical,
	})
	e.setState(ctx, api.StateResyncRequired)
}

// failed enters a problem from an error.
func (e *entity) failed(ctx workflow.Context, component, action string, err error) {
	e.raise(ctx, api.Problem{
		Code: codeOf(err), Component: component, Cause: fault.Message(err), Action: action, Health: api.Warning,
	})
}

func codeOf(err error) string {
	if code := fault.Code(err); code != "" {
		return code
	}
	return api.CodeInternal
}
