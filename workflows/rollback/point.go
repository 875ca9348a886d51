package rollback

import (
	"go.temporal.io/sdk/workflow"

	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/workflows/api"
	"drover/workflows/call"
	"drover/workflows/fault"
	"drover/workflows/runbook"
)

// PointParams of a change of recovery point. They stand in histories.
type PointParams struct {
	VM     api.VM          `json:"vm"`
	Disks  []api.VMDisk    `json:"disks"`
	Target api.Target      `json:"target"`
	Now    api.TargetRef   `json:"now"`   // the machine as it is
	Point  replica.Point   `json:"point"` // that it was made from
	Choice api.PointChoice `json:"choice"`
	ID     ident.Seq       `json:"id,omitempty"`
}

// PointResult of a change of recovery point.
type PointResult struct {
	Point   replica.Point     `json:"point"`
	Machine api.TargetMachine `json:"machine"`
}

type change struct {
	PointParams
	run string
	out PointResult
}

// ChangePoint makes a failed-over machine anew from another recovery point. The target has
// room for one machine of the name, so the old one goes first; when the new one fails,
// the old one is made again as it was at the failover.
func ChangePoint(ctx workflow.Context, p PointParams) (PointResult, error) {
	c := &change{PointParams: p, run: workflow.GetInfo(ctx).WorkflowExecution.ID}
	err := runbook.Run(ctx, "another recovery point for "+p.VM.Name, []runbook.Step{
		{Name: "choose the recovery point", Do: c.choose, Undo: c.release},
		{Name: "delete the machine of the old point", Do: c.deleteOld, Undo: c.makeOld},
		{Name: "create the machine", Do: c.create, Undo: c.remove},
		{Name: "start the machine", Do: c.start},
		{Name: "check the machine", Do: func(ctx workflow.Context) error { return call.CheckMachine(ctx, c.made()) }},
		{Name: "release the old point", Do: c.releaseOld},
	})
	return c.out, err
}

func (c *change) choose(ctx workflow.Context) (err error) {
	c.out.Point, err = call.ChoosePoint(ctx, api.ChoosePointInput{
		Machine: c.VM.Machine, Choice: c.Choice, PointID: c.ID, Owner: c.run, Hold: api.Duration(api.UncommittedHold),
	})
	if err == nil && c.out.Point.ID == c.Point.ID {
		return fault.New(api.CodeNoPoint, "%s runs from recovery point %d already; `drover points` lists the others", c.VM.Name, c.Point.ID)
	}
	return err
}

func (c *change) release(ctx workflow.Context) error {
	return c.letGo(ctx, c.out.Point.ID, c.run) // 0, when it is not known: all of this run's
}

func (c *change) letGo(ctx workflow.Context, point ident.Seq, owner string) error {
	return call.ReleasePoint(ctx, api.ReleasePointInput{Machine: c.VM.Machine, Point: point, Owner: owner})
}

func (c *change) deleteOld(ctx workflow.Context) error { return call.DeleteMachine(ctx, c.Now) }

func (c *change) makeOld(ctx workflow.Context) error {
	if _, err := call.CreateMachine(ctx, c.machine(c.Now.Run, c.Point)); err != nil {
		return err
	}
	_, err := call.StartMachine(ctx, c.Now)
	return err
}

func (c *change) create(ctx workflow.Context) (err error) {
	c.out.Machine, err = call.CreateMachine(ctx, c.machine(c.run, c.out.Point))
	return err
}

func (c *change) remove(ctx workflow.Context) error { return call.DeleteMachine(ctx, c.made()) }

func (c *change) start(ctx workflow.Context) (err error) {
	c.out.Machine, err = call.StartMachine(ctx, c.made())
	return err
}

// releaseOld leaves a hold that ends by itself rather than put back a machine that runs.
func (c *change) releaseOld(ctx workflow.Context) error {
	if err := c.letGo(ctx, c.Point.ID, c.Now.Run); err != nil {
		workflow.GetLogger(ctx).Warn("the hold on the old recovery point could not be released; it ends by itself", "error", err)
	}
	return nil
}

func (c *change) made() api.TargetRef { return api.TargetRef{Name: c.VM.Name, Run: c.run} }

func (c *change) machine(run string, point replica.Point) api.CreateMachineInput {
	return api.MachineOf(c.VM, c.Disks, c.Target, run, point)
}
