// Package machine has the entity of a protected machine: one workflow for as long
// as the machine is protected. It owns the machine's state, takes every operator
// action as an update and as a signal of the same name, runs the runbooks as
// children, and watches replication in between.
//
//	machine.go   what an entity is
//	loop.go      its main loop
//	state.go     states, and which action is possible in which
//	handlers.go  updates and signals: validation, idempotence, the queue
//	version.go   versions of commands and state; what the next run takes over
//	stop.go      ending a resync before its end
//	follow.go    changes in the vault: policy and plans
//	actions.go   what the actions do, one function each
//	replicate.go what goes on between actions: enabling, base copy, watching
//	forced.go    what vCenter saw happen to the VM
//	disks.go     what the agent reports, and disks that change
//	back.go      roll-back, change of recovery point, and what it does by itself later
//	remade.go    a VM that was made anew
//	problems.go  problems and health
//	visible.go   search attributes and memo, for Temporal's UI
package machine

import (
	"time"

	"go.temporal.io/sdk/workflow"

	"drover/datapath/ident"
	"drover/workflows/api"
)

// Bounds of an entity.
const (
	maxRecent    = 50 // requests whose result is remembered
	maxTransfers = 16
	maxProblems  = 32
)

// entity is a machine's state. Everything but the fields below the line is carried
// across continue-as-new.
type entity struct {
	in       api.MachineInput
	s        api.MachineStatus
	counter  int
	recent   []api.RecentRequest
	queue    []api.QueuedAction
	joined   bool
	assigned ident.Epoch
	lastSeen time.Time
	news     *api.VaultNews

	version    workflow.Version // of this run's commands; see visible.go
	published  []string         // search attributes and memo, as they were written last
	id         string
	running    *api.QueuedAction
	ended      bool // the action that ran has ended, the loop has not looked yet
	background *background
	gone       bool // unprotected

	cancelAction workflow.CancelFunc // of the action that runs
	stopping     string              // why the resync that runs is being stopped
	asides       int                 // things under way that nobody waits for
	signals      []workflow.ReceiveChannel

	timing       []api.Timer // that are waited for
	taking       bool        // takeDisks runs
	disksNews    bool        // of agent or vCenter, since takeDisks looked
	stirred      bool        // what goes on between actions may have to be started
	vcenterError string      // why vCenter did not tell about disks
}

// protected lists the disks of a VM that are not excluded.
func protected(vm api.VM, exclude []string) []api.VMDisk {
	var out []api.VMDisk
	for _, d := range vm.Disks {
		skip := false
		for _, x := range exclude {
			skip = skip || x == d.Label || x == d.BackingUUID
		}
		if !skip {
			out = append(out, d)
		}
	}
	return out
}
