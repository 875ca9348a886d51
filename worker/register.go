// Package worker says, in one place, which workflows and activities run where:
// on the configuration server (the control queue) or on a process server or
// master target (its host queue).
package worker

import (
	"fmt"
	"maps"
	"slices"

	"go.temporal.io/sdk/activity"
	sdkworker "go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"drover/workflows"
	"drover/workflows/api"
)

// Activities is a group of activities by their activity types.
type Activities interface {
	Activities() map[string]any
}

// controlActivities lists what the control queue must run.
var controlActivities = []string{
	api.ActLookupPlan, api.ActFindMachine, api.ActMachineAction, api.ActVaultJoin, api.ActVaultLeave,
	api.ActVaultStatus, api.ActTargetOf, api.ActReturnOf, api.ActDoneBefore, api.ActAwaitAgent, api.ActListAgents, api.ActResyncWork,
	api.ActChooseServer, api.ActAssign, api.ActUnassign, api.ActFence, api.ActListPoints, api.ActChoosePoint, api.ActChooseCommon,
	api.ActReleasePoint, api.ActRemoveReplica, api.ActListServers,
	api.ActInventory, api.ActWatch, api.ActCheckVCenter, api.ActShutdownVM, api.ActPowerOnVM, api.ActAttachDisks, api.ActDetachDisks, api.ActVerifyVMReady,
	api.ActCheckLocation, api.ActMakeVM, api.ActUnmakeVM,
	api.ActCheckNetwork, api.ActCreateMachine, api.ActStartMachine, api.ActCheckMachine, api.ActStopMachine,
	api.ActDeleteMachine, api.ActCommitMachine, api.ActAcquireRelay, api.ActReleaseRelay,
	api.ActPush, api.ActCheckActions, api.ActScript, api.ActWebhook, api.ActRunbook, api.ActNotify,
}

// hostActivities lists what every host queue must run.
var hostActivities = []string{
	api.ActGrant, api.ActRevoke, api.ActBase, api.ActReplicate, api.ActFinalCut, api.ActRelease, api.ActVerify, api.ActHostListPoints,
}

// RegisterControl gives what registers all workflows and the activities of the
// control queue. An activity that is missing, unknown or there twice is an error.
func RegisterControl(groups ...Activities) (func(sdkworker.Registry), error) {
	activities, err := collect(controlActivities, groups)
	if err != nil {
		return nil, fmt.Errorf("register the control queue: %w", err)
	}
	return func(r sdkworker.Registry) {
		for _, w := range workflows.All() {
			r.RegisterWorkflowWithOptions(w.Func, workflow.RegisterOptions{Name: w.Name})
		}
		register(r, activities)
	}, nil
}

// RegisterHost gives what registers the activities of a host queue.
func RegisterHost(groups ...Activities) (func(sdkworker.Registry), error) {
	activities, err := collect(hostActivities, groups)
	if err != nil {
		return nil, fmt.Errorf("register a host queue: %w", err)
	}
	return func(r sdkworker.Registry) { register(r, activities) }, nil
}

func register(r sdkworker.Registry, activities map[string]any) {
	for _, name := range slices.Sorted(maps.Keys(activities)) {
		r.RegisterActivityWithOptions(activities[name], activity.RegisterOptions{Name: name})
	}
}

// collect puts the groups together and checks that they are exactly what is wanted.
func collect(wanted []string, groups []Activities) (map[string]any, error) {
	all := map[string]any{}
	for _, g := range groups {
		for name, f := range g.Activities() {
			if !slices.Contains(wanted, name) {
				return nil, fmt.Errorf("activity %s does not belong here", name)
			}
			if _, twice := all[name]; twice {
				return nil, fmt.Errorf("activity %s is there twice", name)
			}
			all[name] = f
		}
	}
	for _, name := range wanted {
		if _, ok := all[name]; !ok {
			return nil, fmt.Errorf("activity %s is missing", name)
		}
	}
	return all, nil
}
