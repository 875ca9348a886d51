package plan

import (
	"time"

	"go.temporal.io/sdk/workflow"

	"drover/datapath/ident"
	"drover/workflows/api"
	"drover/workflows/call"
)

// pinFor is how long the points of a run are held: manual steps may take days.
const pinFor = 7 * 24 * time.Hour

// pin chooses the points that the machines have in common before anything is touched:
// while the run goes on, the machines that are left would go on making others without
// those that have been failed over.
func (r *run) pin(ctx workflow.Context) error {
	if !r.in.Point.Common() || r.in.Kind != api.PlanTest && r.in.Kind != api.PlanUnplanned {
		return nil
	}
	in := api.ChooseCommonInput{Choice: r.in.Point, Owner: r.id, Hold: api.Duration(pinFor)}
	for _, s := range r.steps {
		if s.machine != nil {
			in.Machines = append(in.Machines, s.machine.Machine)
		}
	}
	points, err := call.ChooseCommonPoints(ctx, in)
	r.pinned = points
	return err
}

// unpin ends the holds; each failover has its own by now.
func (r *run) unpin(ctx workflow.Context) {
	ctx, cancel := workflow.NewDisconnectedContext(ctx)
	defer cancel()
	for _, p := range r.pinned {
		if err := call.ReleasePoint(ctx, api.ReleasePointInput{Machine: p.Machine, Point: p.Point, Owner: r.id}); err != nil {
			workflow.GetLogger(ctx).Warn("the hold on a recovery point could not be released; it ends by itself", "machine", p.Machine.String(), "point", p.Point, "error", err)
		}
	}
}

// point is the choice for a machine. One that has no point in common with others gets
// its latest.
func (r *run) point(machine ident.MachineID, name string) (api.PointChoice, ident.Seq) {
	if id := r.in.Points[name]; id != 0 {
		return api.PointCustom, id
	}
	if !r.in.Point.Common() {
		return r.in.Point, 0
	}
	for _, p := range r.pinned {
		if p.Machine == machine {
			return api.PointCustom, p.Point
		}
	}
	return api.PointLatest, 0
}
