package control

import (
	"context"
	"time"

	"drover/activities/activityerr"
	"drover/workflows/api"
)

const tellLimit = 30 * time.Second

// LookupVCenter gives how to reach a vCenter, from its discovery's workflow. It is
// no activity itself; those on vCenter use it.
func (c *Control) LookupVCenter(ctx context.Context, name string) (api.VCenter, error) {
	v, known, err := query[api.VCenter](ctx, c.Client, api.DiscoveryWorkflowID(name), api.QueryVCenter)
	switch {
	case err != nil:
		return v, activityerr.Wrap(api.CodeInternal, err, "ask the discovery of vCenter %q for it: %v", name, err)
	case !known:
		return v, activityerr.New(api.CodeNotFound, "vCenter %q is not known; connect it first", name)
	}
	return v, nil
}

// TellDiscovery sends what a watch saw to the discovery of the vCenter.
func (c *Control) TellDiscovery(ctx context.Context, vcenter string, r api.WatchReport) error {
	ctx, cancel := context.WithTimeout(ctx, tellLimit)
	defer cancel()
	if err := c.Client.SignalWorkflow(ctx, api.DiscoveryWorkflowID(vcenter), "", api.SignalWatched, r); err != nil {
		return activityerr.Wrap(api.CodeInternal, err, "tell the discovery of vCenter %q what changed: %v", vcenter, err)
	}
	return nil
}
