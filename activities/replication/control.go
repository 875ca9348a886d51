// Package replication has the activities around a machine's stream and replica:
// which server takes it, its recovery points, and on the server itself grants,
// base passes and the watch of delta replication.
//
// [Control] runs on the configuration server, [Host] on a process server or
// master target.
package replication

import (
	"context"
	"errors"
	"slices"
	"time"

	"drover/activities/activityerr"
	"drover/agent/controlapi"
	"drover/datapath/cachestore"
	"drover/datapath/health"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/workflows/api"
)

// serverSilence: a server not heard of for longer takes no machine.
const serverSilence = 30 * time.Second

// Server is a process server or master target as the registry knows it.
type Server struct {
	Name     string
	Address  string // where agents reach it, host:port
	LastSeen time.Time
	Assigned int // machines that are assigned to it now
	// Groups counts them by consistency group.
	Groups  map[string]int
	Version string
	Health  *health.Report // as it said last; nil: it never did
}

// Registry is what is asked of the configuration server's registry.
type Registry interface {
	// Servers lists the enrolled servers of a role that are not revoked.
	Servers(role ident.Role) ([]Server, error)
	// Assignment gives what the machine's agent was told last.
	Assignment(machine ident.MachineID) (controlapi.Assignment, bool)
	// SetAssignment tells the machine's agents what to do; the registry numbers it.
	SetAssignment(a controlapi.Assignment) error
	// DropKeys forgets the machine's data keys: what was encrypted with them can
	// never be read again.
	DropKeys(machine ident.MachineID) error
}

// ControlConfig of the activities of the configuration server.
type ControlConfig struct {
	Registry Registry
	Store    replica.Store
	Cache    cachestore.Store
	Now      func() time.Time // nil: time.Now
}

// Control has the activities that run on the configuration server.
type Control struct{ ControlConfig }

// NewControl makes the activities.
func NewControl(c ControlConfig) *Control {
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Control{c}
}

// Activities gives the functions by their activity type.
func (c *Control) Activities() map[string]any {
	return map[string]any{
		api.ActChooseServer:  c.ChooseServer,
		api.ActAssign:        c.Assign,
		api.ActUnassign:      c.Unassign,
		api.ActFence:         c.Fence,
		api.ActListPoints:    c.ListPoints,
		api.ActChoosePoint:   c.ChoosePoint,
		api.ActChooseCommon:  c.ChooseCommonPoints,
		api.ActReleasePoint:  c.ReleasePoint,
		api.ActRemoveReplica: c.RemoveReplica,
		api.ActListServers:   c.ListServers,
	}
}

// ChooseServer picks the live server with the most machines of the consistency group, for
// only those of one server have points in common, then the one with the fewest machines;
// one to avoid is taken only when there is no other. Instance and epoch are the caller's to set;
// the epoch in the answer is the newest the machine was ever assigned in (0:
// never), below which the caller must not go.
func (c *Control) ChooseServer(_ context.Context, in api.ChooseServerInput) (api.Assignment, error) {
	servers, err := c.Registry.Servers(in.Role)
	if err != nil {
		return api.Assignment{}, activityerr.Of(err, "list the servers of role %s", in.Role)
	}
	now := c.Now()
	live := slices.DeleteFunc(slices.Clone(servers), func(s Server) bool {
		return s.Address == "" || now.Sub(s.LastSeen) > serverSilence
	})
	if len(live) == 0 {
		return api.Assignment{}, activityerr.New(api.CodeNoServer,
			"no %s was heard of in the last %s (%d enrolled); start one, or enrol one", in.Role, serverSilence, len(servers))
	}
	best := slices.MinFunc(live, func(a, b Server) int { return compareServers(a, b, in) })
	last, _ := c.Registry.Assignment(in.Machine)
	return api.Assignment{Server: best.Name, Role: in.Role, Address: best.Address, Epoch: last.Epoch}, nil
}

// compareServers orders by: not to be avoided, most of the group, fewest machines, name.
func compareServers(a, b Server, in api.ChooseServerInput) int {
	bad := func(s Server) int {
		if slices.Contains(in.Avoid, s.Name) {
			return 1
		}
		return 0
	}
	switch {
	case bad(a) != bad(b):
		return bad(a) - bad(b)
	case in.Group != "" && a.Groups[in.Group] != b.Groups[in.Group]:
		return b.Groups[in.Group] - a.Groups[in.Group]
	case a.Assigned != b.Assigned:
		return a.Assigned - b.Assigned
	case a.Name < b.Name:
		return -1
	}
	return 1
}

// Assign tells the machine's agent where to stream. An older epoch than the one
// it was told last is refused.
func (c *Control) Assign(_ context.Context, in api.AssignInput) error {
	a := in.Assignment
	if in.Machine.IsZero() || a.Server == "" || a.Address == "" || a.Instance == "" || len(in.Disks) == 0 {
		return activityerr.New(api.CodeInvalid, "assign machine %s: server, address, instance and disks are needed", in.Machine)
	}
	if last, ok := c.Registry.Assignment(in.Machine); ok && last.Epoch > a.Epoch {
		return activityerr.New(api.CodeFenced, "assign machine %s to %s in epoch %d: it was assigned in epoch %d already", in.Machine, a.Server, a.Epoch, last.Epoch)
	}
	disks := make([]controlapi.Disk, len(in.Disks))
	for i, d := range in.Disks {
		disks[i] = controlapi.Disk{ID: d.ID, BackingUUID: d.BackingUUID, Size: d.Size}
	}
	err := c.Registry.SetAssignment(controlapi.Assignment{
		Action: controlapi.ActionReplicate, Machine: in.Machine, Epoch: a.Epoch, Instance: a.Instance,
		Server: a.Server, Role: a.Role, Address: a.Address, Via: a.Via, Disks: disks, Group: in.Group,
	})
	return activityerr.Of(err, "assign machine %s to %s", in.Machine, a.Server)
}

// Unassign makes all agents of the machine stand by; one of them may be asked to see
// meanwhile whether it reaches a server.
func (c *Control) Unassign(_ context.Context, in api.UnassignInput) error {
	last, ok := c.Registry.Assignment(in.Machine)
	if !ok && in.Reach == nil {
		return nil
	}
	a := controlapi.Assignment{Action: controlapi.ActionStandby, Machine: in.Machine, Epoch: last.Epoch, Reason: in.Reason}
	if r := in.Reach; r != nil {
		a.Reach, a.Instance, a.Server, a.Role, a.Address, a.Via = true, r.Instance, r.Server, r.Role, r.Address, r.Via
	}
	err := c.Registry.SetAssignment(a)
	return activityerr.Of(err, "make the agents of machine %s stand by", in.Machine)
}

// Fence raises the machine's epoch in store and cache, so that older owners are
// refused there from then on. A machine of which the store has nothing needs no
// fence in it.
func (c *Control) Fence(ctx context.Context, in api.FenceInput) error {
	err := c.Store.Fence(ctx, in.Machine, in.Epoch)
	if err != nil && !errors.Is(err, replica.ErrNotFound) {
		return activityerr.Of(err, "raise machine %s to epoch %d in the store", in.Machine, in.Epoch)
	}
	err = c.Cache.Fence(ctx, in.Machine, in.Epoch)
	if err != nil && !errors.Is(err, cachestore.ErrNotFound) {
		return activityerr.Of(err, "raise machine %s to epoch %d in the cache", in.Machine, in.Epoch)
	}
	return nil
}
