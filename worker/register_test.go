package worker

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	sdkworker "go.temporal.io/sdk/worker"

	"drover/activities/control"
	"drover/activities/replication"
	"drover/workflows/api"
)

type group map[string]any

func (g group) Activities() map[string]any { return g }

// registrar notes what is registered.
type registrar struct {
	sdkworker.Registry
	names []string
}

func (r *registrar) RegisterActivityWithOptions(_ any, o activity.RegisterOptions) {
	r.names = append(r.names, o.Name)
}

func TestHostQueueIsComplete(t *testing.T) {
	register, err := RegisterHost(replication.NewHost(replication.HostConfig{Name: "ps-1"}))
	require.NoError(t, err)
	r := &registrar{}
	register(r)
	require.ElementsMatch(t, hostActivities, r.names)
	for _, name := range hostActivities {
		require.True(t, api.RunsOnHost(name), name)
	}
	for _, name := range controlActivities {
		require.False(t, api.RunsOnHost(name), name)
	}
}

func TestWhatIsNotExactlyWantedIsRefused(t *testing.T) {
	host := replication.NewHost(replication.HostConfig{})
	_, err := RegisterHost()
	require.ErrorContains(t, err, api.ActGrant+" is missing")
	_, err = RegisterHost(host, host)
	require.ErrorContains(t, err, "twice")
	_, err = RegisterHost(host, group{api.ActScript: func() {}})
	require.ErrorContains(t, err, api.ActScript+" does not belong here")
	_, err = RegisterControl(control.New(control.Config{}), replication.NewControl(replication.ControlConfig{}))
	require.ErrorContains(t, err, "is missing")
}
