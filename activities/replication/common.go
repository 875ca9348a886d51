package replication

import (
	"context"

	"drover/activities/activityerr"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/workflows/api"
)

// ChooseCommonPoints chooses for each consistency group that the machines are of the
// newest moment that all machines of its round have, and holds the points of these
// machines. A machine that has no point of it is left out: it is of no group, or has left
// it.
func (c *Control) ChooseCommonPoints(ctx context.Context, in api.ChooseCommonInput) ([]api.CommonPoint, error) {
	hold := in.Hold.D()
	if in.Owner == "" || hold <= 0 || hold > holdLongest || !in.Choice.Common() {
		return nil, activityerr.New(api.CodeInvalid, "choose points in common: an owner, a hold of at most %s, and %s or %s are needed", holdLongest, api.PointLatestMulti, api.PointLatestMultiApp)
	}
	moments, err := c.moments(ctx, in.Choice)
	if err != nil {
		return nil, err
	}
	newest := map[string]replica.Moment{} // by group
	for _, m := range moments {
		for _, id := range in.Machines {
			if _, ok := m.Points[id]; ok {
				newest[m.Group] = m // they are in order
			}
		}
	}
	out := []api.CommonPoint{}
	for _, id := range in.Machines {
		var best replica.Moment // it may have been of another group before
		for _, m := range newest {
			if _, ok := m.Points[id]; ok && (best.Group == "" || m.Time.After(best.Time)) {
				best = m
			}
		}
		if best.Group == "" {
			continue
		}
		p := best.Points[id]
		err := withReader(ctx, c.Store, id, func(r replica.Reader) error {
			return r.Hold(ctx, p.ID, replica.Hold{Owner: in.Owner, Expires: c.Now().Add(hold)})
		})
		if err != nil {
			return nil, activityerr.Of(goneAs(err, id, p.ID), "hold recovery point %d of machine %s", p.ID, id)
		}
		out = append(out, api.CommonPoint{Machine: id, Point: p.ID, Group: best.Group, Round: best.Round, Time: best.Time})
	}
	return out, nil
}

// commonPoint gives the machine's newest point that all machines of its round have.
func (c *Control) commonPoint(ctx context.Context, machine ident.MachineID, choice api.PointChoice) (ident.Seq, error) {
	moments, err := c.moments(ctx, choice)
	if err != nil {
		return 0, err
	}
	for i := len(moments) - 1; i >= 0; i-- {
		if p, ok := moments[i].Points[machine]; ok {
			return p.ID, nil
		}
	}
	return 0, activityerr.New(api.CodeNoPoint, "machine %s has no recovery point in common with all machines of a consistency group (%s); choose another kind", machine, choice)
}

// moments gives the moments that are whole and fit the choice, oldest first.
func (c *Control) moments(ctx context.Context, choice api.PointChoice) (fit []replica.Moment, err error) {
	all, err := replica.Moments(ctx, c.Store)
	if err != nil {
		return nil, activityerr.Of(err, "look for points in common")
	}
	for _, m := range all {
		if m.Whole() && (choice != api.PointLatestMultiApp || m.Consistency() >= ident.ApplicationConsistent) {
			fit = append(fit, m)
		}
	}
	return fit, nil
}
