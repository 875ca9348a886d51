package failover

import (
	"go.temporal.io/sdk/workflow"

	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/workflows/api"
	"drover/workflows/call"
	"drover/workflows/fault"
)

// holdAny makes sure that there is something to fail over to before the source
// is touched: the point asked for, or for "latest" the newest there is already.
func (f *failover) holdAny(ctx workflow.Context) error {
	choice := f.choice()
	if choice == api.PointLatest {
		choice = api.PointLatestProcessed
	}
	point, err := f.choose(ctx, choice, f.Request.PointID)
	if err == nil {
		f.held = &point
	}
	return err
}

// choosePoint takes the final point of a planned failover, else what was asked
// for; by now all data received is processed.
func (f *failover) choosePoint(ctx workflow.Context) error {
	choice, id := f.choice(), f.Request.PointID
	if f.final != nil {
		choice, id = api.PointCustom, f.final.ID
	}
	point, err := f.choose(ctx, choice, id)
	if err != nil {
		return err
	}
	f.out.Point = point
	if f.final != nil && point.Position != f.final.Position {
		return fault.New(api.CodeDiffers, "the store has recovery point %d at position %v, the final cut was at %v; nothing was started, the source goes on", point.ID, point.Position, f.final.Position)
	}
	if f.held != nil && f.held.ID != point.ID {
		if err := f.letGo(ctx, f.held.ID); err != nil {
			f.warn("the hold on recovery point %d could not be released: %s", f.held.ID, fault.Message(err))
		}
	}
	return nil
}

func (f *failover) choose(ctx workflow.Context, choice api.PointChoice, id ident.Seq) (replica.Point, error) {
	return call.ChoosePoint(ctx, api.ChoosePointInput{
		Machine: f.VM.Machine, Choice: choice, PointID: id, Owner: f.id, Hold: api.Duration(api.UncommittedHold),
	})
}

func (f *failover) choice() api.PointChoice {
	if f.Request.Point == "" {
		return api.PointLatest
	}
	return f.Request.Point
}

func (f *failover) releaseHeld(ctx workflow.Context) error {
	if f.held == nil {
		return f.letGoAll(ctx)
	}
	return f.letGo(ctx, f.held.ID)
}

func (f *failover) releasePoint(ctx workflow.Context) error {
	switch {
	case f.out.Point.ID != 0:
		return f.letGo(ctx, f.out.Point.ID)
	case f.final != nil: // choosing it ran out of time, perhaps after holding it
		return f.letGo(ctx, f.final.ID)
	}
	return f.letGoAll(ctx)
}

// letGoAll ends holds that nobody knows of: the choice failed, perhaps after it held one.
func (f *failover) letGoAll(ctx workflow.Context) error {
	if workflow.GetVersion(ctx, "release-all", workflow.DefaultVersion, 1) == workflow.DefaultVersion {
		return nil
	}
	return f.letGo(ctx, 0)
}

func (f *failover) letGo(ctx workflow.Context, point ident.Seq) error {
	return call.ReleasePoint(ctx, api.ReleasePointInput{Machine: f.VM.Machine, Point: point, Owner: f.id})
}
