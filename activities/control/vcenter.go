package control

import (
	"context"
	"errors"

	"go.temporal.io/api/serviceerror"

	"drover/activities/activityerr"
	"drover/workflows/api"
)

// LookupVCenter gives how to reach a vCenter, from its discovery's workflow. It is
// no activity itself; those on vCenter use it.
func (c *Control) LookupVCenter(ctx context.Context, name string) (api.VCenter, error) {
	value, err := c.Client.QueryWorkflow(ctx, api.DiscoveryWorkflowID(name), "", api.QueryStatus)
	var missing *serviceerror.NotFound
	if errors.As(err, &missing) {
		return api.VCenter{}, activityerr.Wrap(api.CodeNotFound, err, "vCenter %q is not known; connect it first", name)
	}
	var status api.DiscoveryStatus
	if err == nil {
		err = value.Get(&status)
	}
	if err != nil {
		return api.VCenter{}, activityerr.Wrap(api.CodeInternal, err, "ask the discovery of vCenter %q for its status: %v", name, err)
	}
	return status.VCenter, nil
}
