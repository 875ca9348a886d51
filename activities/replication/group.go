package replication

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"drover/datapath/stream"
	"drover/workflows/api"
)

// groupPatience is how long a group may be without points in common before the machine
// that keeps it from them has a problem: agents come and go.
const groupPatience = 2 * time.Minute

// checkGroup tells the entity when its machine keeps the consistency group from points in
// common, and when it does so no more. What could not be told is told at the next look.
func (w *watch) checkGroup(ctx context.Context, st stream.Status) {
	why := ""
	if g := st.Group; g != nil && g.Why != "" && !g.Since.IsZero() && st.ServerTime.Sub(g.Since) > groupPatience {
		why = g.Why
	}
	if (why == "") == (w.mark.Missed == "") && w.mark.Looked {
		return
	}
	if why != "" || st.Group != nil || w.mark.Missed != "" {
		if err := w.signalEntity(ctx, w.in.Workflow, w.groupEvent(st, why)); err != nil {
			w.Logger.Warn("the machine's workflow could not be told of its group; trying again",
				slog.String("machine", w.in.Machine.String()), slog.String("error", err.Error()))
			return
		}
	}
	w.mu.Lock()
	w.mark.Missed, w.mark.Looked = why, true
	w.mu.Unlock()
}

func (w *watch) groupEvent(st stream.Status, why string) api.ReplicationEvent {
	e := api.ReplicationEvent{Cleared: why == "", Problem: api.Problem{
		Code: api.CodeGroupMissed, Component: w.component(), Health: api.Warning, Since: st.ServerTime,
		Cause:  "the machine misses the rounds of its consistency group: " + why,
		Action: "mend what is said, or give the machine a policy without the group; its own points and those of the others go on",
	}}
	if g := st.Group; g != nil {
		e.Problem.Evidence = fmt.Sprintf("group %s, %d machines, no point in common since %s", g.Name, g.Members, g.Since.UTC().Format(time.RFC3339))
	}
	return e
}
