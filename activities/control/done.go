package control

import (
	"context"

	"drover/workflows/api"
)

// DoneBefore reports whether a machine that refused an action is already what the action
// would make of it: after a run that was cancelled, the next one goes on from there.
func (c *Control) DoneBefore(ctx context.Context, in api.MachineActionInput) (api.DoneBefore, error) {
	s, known, err := c.machineStatus(ctx, in.Machine)
	if err != nil || !known {
		return api.DoneBefore{}, err
	}
	return s.DoneBefore(in.Action), nil
}
