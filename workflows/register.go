// Package workflows lists Drover's workflows by the names they stand under in
// histories. They are pure orchestration: no I/O, no clock but Temporal's.
package workflows

import (
	"drover/workflows/agents"
	"drover/workflows/api"
	"drover/workflows/discovery"
	"drover/workflows/failback"
	"drover/workflows/failover"
	"drover/workflows/machine"
	"drover/workflows/plan"
	"drover/workflows/points"
	"drover/workflows/resync"
	"drover/workflows/rollback"
	"drover/workflows/servers"
	"drover/workflows/vault"
	"drover/workflows/vcenter"
	"drover/workflows/verify"
)

// Named is a workflow with its type name.
type Named struct {
	Name string
	Func any
}

// All lists the workflows that a worker of the control queue registers.
func All() []Named {
	return []Named{
		{api.WorkflowMachine, machine.Workflow},
		{api.WorkflowInitialReplication, resync.InitialReplication},
		{api.WorkflowResync, resync.Resync},
		{api.WorkflowResyncWindow, resync.Window},
		{api.WorkflowFailover, failover.Workflow},
		{api.WorkflowTestFailover, failover.TestWorkflow},
		{api.WorkflowReprotect, failback.Reprotect},
		{api.WorkflowFailback, failback.Workflow},
		{api.WorkflowReenable, failback.Reenable},
		{api.WorkflowRollBack, rollback.Workflow},
		{api.WorkflowChangePoint, rollback.ChangePoint},
		{api.WorkflowRecoveryPlan, plan.Workflow},
		{api.WorkflowDiscovery, discovery.Workflow},
		{api.WorkflowPush, agents.Push},
		{api.WorkflowCheckVCenter, vcenter.Check},
		{api.WorkflowVault, vault.Workflow},
		{api.WorkflowListPoints, points.List},
		{api.WorkflowListServers, servers.List},
		{api.WorkflowListAgents, agents.List},
		{api.WorkflowCheckPlan, plan.Check},
		{api.WorkflowVerify, verify.Workflow},
	}
}
