package configserver

import (
	"errors"

	"drover/activities/activityerr"
	"drover/activities/replication"
	"drover/agent/controlapi"
	"drover/datapath/ident"
	"drover/worker/registry"
	"drover/workflows/api"
)

// directory shows the registry as the activities see it.
type directory struct{ *registry.Registry }

var _ replication.Registry = directory{}

// Servers lists the enrolled servers of a role that are not revoked.
func (d directory) Servers(role ident.Role) ([]replication.Server, error) {
	records, err := d.Registry.Servers(role)
	out := make([]replication.Server, len(records))
	for i, r := range records {
		out[i] = replication.Server{Name: r.Name, Address: r.DataAddress, LastSeen: r.LastSeen, Assigned: r.Assigned, Groups: r.Groups, Version: r.Version, Health: r.Health}
	}
	return out, err
}

// SetAssignment tells the machine's agents what to do.
func (d directory) SetAssignment(a controlapi.Assignment) error {
	err := d.Registry.SetAssignment(a)
	if errors.Is(err, registry.ErrOldEpoch) {
		return activityerr.Wrap(api.CodeFenced, err, "%v", err)
	}
	return err
}
