package api

import (
	"time"

	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/stream"
)

// Activity types, by the outside system they touch. They stand in histories:
// never rename. The control queue runs all but those marked host.
const (
	// Temporal itself and the configuration server's registry.
	ActLookupPlan    = "control.LookupPlan"    // name -> Plan
	ActFindMachine   = "control.FindMachine"   // name or id -> VaultMember
	ActTargetOf      = "control.TargetOf"      // PrecheckInput -> CheckNetworkInput: what a failover would make of the machine
	ActReturnOf      = "control.ReturnOf"      // PrecheckInput -> MakeVMInput: what a reprotect would take or make
	ActDoneBefore    = "control.DoneBefore"    // MachineActionInput -> DoneBefore
	ActMachineAction = "control.MachineAction" // MachineActionInput -> ActionResult; waits for the end
	ActVaultJoin     = "control.VaultJoin"     // VaultMember
	ActVaultLeave    = "control.VaultLeave"    // machine id
	ActVaultStatus   = "control.VaultStatus"   // nothing -> VaultStatus; a vault not yet started is an empty one
	ActAwaitAgent    = "control.AwaitAgent"    // AwaitAgentInput -> AgentInfo; heartbeats
	ActListAgents    = "control.ListAgents"    // ListAgentsInput -> ListAgentsResult
	ActResyncWork    = "control.ResyncWork"    // ResyncWorkInput -> ResyncWork; heartbeats

	ActChooseServer   = "replication.ChooseServer"       // ChooseServerInput -> Assignment
	ActAssign         = "replication.Assign"             // AssignInput: tells the agent
	ActUnassign       = "replication.Unassign"           // UnassignInput: agents of the machine stand by
	ActFence          = "replication.Fence"              // FenceInput: raises the epoch in store and cache
	ActListPoints     = "replication.ListPoints"         // machine id -> []replica.Point
	ActChoosePoint    = "replication.ChoosePoint"        // ChoosePointInput -> replica.Point; holds it
	ActChooseCommon   = "replication.ChooseCommonPoints" // ChooseCommonInput -> []CommonPoint
	ActReleasePoint   = "replication.ReleasePoint"       // ReleasePointInput
	ActListServers    = "replication.ListServers"        // nothing -> []ServerStatus
	ActRemoveReplica  = "replication.RemoveReplica"      // FenceInput: deletes replica, points and cache objects
	ActGrant          = "replication.Grant"              // host: GrantInput
	ActRevoke         = "replication.Revoke"             // host: FenceInput
	ActBase           = "replication.Base"               // host: BaseInput -> Transfer; heartbeats stream.Status
	ActReplicate      = "replication.Replicate"          // host: ReplicateInput -> ReplicateResult; heartbeats stream.Status
	ActFinalCut       = "replication.FinalCut"           // host: FenceInput -> replica.Point
	ActRelease        = "replication.Release"            // host: FenceInput
	ActVerify         = "replication.Verify"             // host: VerifyInput -> stream.SignedRecord; heartbeats stream.Status
	ActHostListPoints = "replication.HostListPoints"     // host: machine id -> []replica.Point (of that server's store)

	ActInventory     = "vsphere.Inventory"       // VCenter -> InventoryResult
	ActCheckVCenter  = "vsphere.CheckPrivileges" // CheckVCenterInput -> VCenterCheck
	ActWatch         = "vsphere.Watch"           // WatchInput; signals the discovery what changes, until its time is over
	ActShutdownVM    = "vsphere.ShutdownVM"      // ShutdownInput -> ShutdownResult
	ActPowerOnVM     = "vsphere.PowerOnVM"       // VMRef
	ActAttachDisks   = "vsphere.AttachDisks"     // AttachInput: the original's disks to the master target
	ActDetachDisks   = "vsphere.DetachDisks"     // AttachInput: keeps the files
	ActVerifyVMReady = "vsphere.VerifyVMReady"   // VMRef -> VM: powered on, as inventoried
	ActCheckLocation = "vsphere.CheckLocation"   // MakeVMInput: what would keep the VM from being there, or made there
	ActMakeVM        = "vsphere.MakeVM"          // MakeVMInput -> MadeVM: switched off, with empty disks; heartbeats
	ActUnmakeVM      = "vsphere.UnmakeVM"        // UnmakeVMInput

	ActCheckNetwork  = "target.CheckNetwork"  // CheckNetworkInput
	ActCreateMachine = "target.CreateMachine" // CreateMachineInput -> TargetMachine; disks from the point; heartbeats; not started
	ActStartMachine  = "target.StartMachine"  // TargetRef -> TargetMachine
	ActCheckMachine  = "target.CheckMachine"  // TargetRef -> CheckResult
	ActStopMachine   = "target.StopMachine"   // TargetRef
	ActDeleteMachine = "target.DeleteMachine" // TargetRef: all that carries its tags
	ActCommitMachine = "target.CommitMachine" // TargetRef: what a machine that stays does not need
	ActAcquireRelay  = "relay.Acquire"        // RelayInput -> Relay: makes the temporary process server, or finds it
	ActReleaseRelay  = "relay.Release"        // RelayInput: the last machine deletes it

	ActPush = "push.Push" // PushInput -> PushResult

	ActCheckActions = "action.Check" // []LocatedAction -> []FieldError: what could not be run, without running it

	ActScript  = "action.Script"  // ScriptInput -> ActionOutput
	ActWebhook = "action.Webhook" // WebhookInput -> ActionOutput
	ActRunbook = "action.Runbook" // RunbookInput -> ActionOutput; of the target's automation account
	ActNotify  = "notify.Send"    // Notification
)

// RunsOnHost reports whether the activity runs on the queue of a process server
// or master target.
func RunsOnHost(activity string) bool {
	switch activity {
	case ActGrant, ActRevoke, ActBase, ActReplicate, ActFinalCut, ActRelease, ActVerify, ActHostListPoints:
		return true
	}
	return false
}

// MachineActionInput runs an action of a machine's entity and waits for its end.
type MachineActionInput struct {
	Machine ident.MachineID `json:"machine"`
	Action  string          `json:"action"`
	Request ActionRequest   `json:"request"` // RequestID must be set
}

// AwaitAgentInput waits until the machine's agent is enrolled and was heard of
// after Since, on the given instance (empty: any).
type AwaitAgentInput struct {
	Machine  ident.MachineID `json:"machine"`
	Instance string          `json:"instance,omitempty"`
	Since    time.Time       `json:"since,omitempty"`
	// Reach waits until the agent has told whether it reaches this server, which
	// UnassignInput.Reach has asked it.
	Reach *Assignment `json:"reach,omitempty"`
}

// AgentInfo is what is known of an agent.
type AgentInfo struct {
	Instance string    `json:"instance"`
	Version  string    `json:"version"`
	LastSeen time.Time `json:"lastSeen"`
	// Report is all that it said last.
	Report *AgentReport `json:"report,omitempty"`
}

// ChooseServerInput asks for a process server or master target.
type ChooseServerInput struct {
	Machine ident.MachineID `json:"machine"`
	Role    ident.Role      `json:"role"`
	Site    string          `json:"site,omitempty"`
	// Group is the machine's consistency group, which should be on one server.
	Group string `json:"group,omitempty"`
	// Avoid names servers that just failed; used only if there is no other.
	Avoid []string `json:"avoid,omitempty"`
}

// AssignInput tells the machine's agent where to stream.
type AssignInput struct {
	Machine    ident.MachineID `json:"machine"`
	Assignment Assignment      `json:"assignment"`
	Disks      []VMDisk        `json:"disks"`
	Group      string          `json:"group,omitempty"` // its consistency group
}

// UnassignInput makes all agents of the machine stand by.
type UnassignInput struct {
	Machine ident.MachineID `json:"machine"`
	Reason  string          `json:"reason"`
	// Reach has the agent on Reach.Instance see, while it stands by, whether it reaches the
	// server.
	Reach *Assignment `json:"reach,omitempty"`
}

// FenceInput names a machine and an epoch.
type FenceInput struct {
	Machine ident.MachineID `json:"machine"`
	Epoch   ident.Epoch     `json:"epoch"`
}

// UncommittedHold is how long a failover keeps its recovery point: a failover that is not
// failover older than this may lose the choice of the same point, not its disks.
const UncommittedHold = 30 * 24 * time.Hour

// ChoosePointInput resolves a choice of recovery point and holds the point.
type ChoosePointInput struct {
	Machine ident.MachineID `json:"machine"`
	Choice  PointChoice     `json:"choice"`
	PointID ident.Seq       `json:"pointId,omitempty"`
	Owner   string          `json:"owner"` // of the hold
	Hold    Duration        `json:"hold"`
}

// ChooseCommonInput chooses points that several machines have in common, and holds them.
type ChooseCommonInput struct {
	Machines []ident.MachineID `json:"machines"`
	Choice   PointChoice       `json:"choice"`
	Owner    string            `json:"owner"` // of the holds
	Hold     Duration          `json:"hold"`
}

// CommonPoint is a machine's point of a moment of its consistency group.
type CommonPoint struct {
	Machine ident.MachineID `json:"machine"`
	Point   ident.Seq       `json:"point"`
	Group   string          `json:"group"`
	Round   ident.Round     `json:"round"`
	Time    time.Time       `json:"time"`
}

// ReleasePointInput ends a hold, or with no point all that the owner has: after a choice
// whose answer was lost.
type ReleasePointInput struct {
	Machine ident.MachineID `json:"machine"`
	Point   ident.Seq       `json:"point"`
	Owner   string          `json:"owner"`
}

// GrantInput lets a machine stream to a server.
type GrantInput struct {
	Machine    ident.MachineID `json:"machine"`
	Name       string          `json:"name"`
	Assignment Assignment      `json:"assignment"`
	Disks      []VMDisk        `json:"disks"`
	Policy     Policy          `json:"policy"`
	Target     Target          `json:"target"`
	// Attached: a master target with the machine's disks attached.
	Attached bool `json:"attached,omitempty"`
}

// BaseInput runs a base pass to its end: initial copy, resync, or the difference
// of a reprotect or re-enable.
type BaseInput struct {
	GrantInput
	Cause string `json:"cause"`
	// NewGeneration begins a new one (resync); else it goes on with what is there.
	NewGeneration bool `json:"newGeneration"`
	Rescan        bool `json:"rescan,omitempty"`
}

// ReplicateInput watches a machine's delta replication.
type ReplicateInput struct {
	GrantInput
	RPOThreshold Duration `json:"rpoThreshold"`
	// Since is when this watch was asked for.
	Workflow string `json:"workflow"` // the entity to signal events to
}

// ReplicateResult is how delta replication ended.
type ReplicateResult struct {
	Broken *stream.Broken `json:"broken,omitempty"` // the machine is marked for resync
	Status stream.Status  `json:"status"`
}

// SignalReplicationEvent tells the entity of a threshold passed, with a
// ReplicationEvent.
const SignalReplicationEvent = "replication-event"

// ReplicationEvent raises or clears a problem without ending replication.
type ReplicationEvent struct {
	Problem Problem `json:"problem"`
	Cleared bool    `json:"cleared"` // the problem with this code is over
}

// SignalInventory tells the entity what discovery saw of its VM.
const SignalInventory = "inventory"

// SignalAgent tells the entity what its machine's agent reports, an AgentReport, when
// that has changed.
const SignalAgent = "agent-report"

// VerifyInput compares a machine's source with its replica; the query status gives it.
type VerifyInput struct {
	Machine ident.MachineID `json:"machine"`
	Name    string          `json:"name"`
	Epoch   ident.Epoch     `json:"epoch"`
	Server  string          `json:"server"`
	Deep    bool            `json:"deep,omitempty"`
	// Rate bounds how fast the source is read, in bytes per second; 0: no bound.
	Rate int64  `json:"rate,omitempty"`
	By   string `json:"by,omitempty"` // principal
}

// InventoryResult is a full pass over a vCenter.
type InventoryResult struct {
	UUID string `json:"uuid"`
	VMs  VMList `json:"vms"`
	// TagsError is why tags, or some, could not be read.
	TagsError string `json:"tagsError,omitempty"`
}

// VMRef names a VM.
type VMRef struct {
	VCenter      string `json:"vcenter"` // name; the activity finds its address in the discovery's workflow
	InstanceUUID string `json:"instanceUUID"`
}

// ShutdownInput shuts a VM down: by its guest, which has Limit for it, then by power if
// Force. Freeze: the guest is frozen by a final cut, so power off at once.
type ShutdownInput struct {
	VMRef
	Limit  Duration `json:"limit"`
	Force  bool     `json:"force"`
	Freeze bool     `json:"freeze"`
}

// ShutdownResult says how it went down.
type ShutdownResult struct {
	WasOn bool   `json:"wasOn"`
	How   string `json:"how"` // "off already", "guest shutdown", "power off"
}

// AttachInput attaches the original VM's disks to a master target's VM, or
// detaches them.
type AttachInput struct {
	Original VMRef `json:"original"`
	// MasterTarget is the server's name; its VM carries the same name in vCenter.
	MasterTarget string   `json:"masterTarget"`
	Disks        []VMDisk `json:"disks"`
}

// CheckNetworkInput checks a target network before anything is started in it.
type CheckNetworkInput struct {
	Network  string `json:"network"`
	Isolated bool   `json:"isolated"` // it must have no peering, gateway or route out
	// For is the machine that is to be made there: what would be refused then is
	// refused now, before anything is changed. Its point is not chosen yet.
	For *CreateMachineInput `json:"for,omitempty"`
}

// CreateMachineInput makes a machine with disks from a recovery point. What an
// earlier try made is found by its tags and used.
type CreateMachineInput struct {
	Machine ident.MachineID   `json:"machine"`
	Name    string            `json:"name"` // of the machine to make
	Run     string            `json:"run"`  // workflow id: makes tags unique
	Point   replica.Point     `json:"point"`
	Disks   []VMDisk          `json:"disks"`
	CPUs    int32             `json:"cpus"`
	Memory  int32             `json:"memoryMB"`
	Target  Target            `json:"target"`
	Network string            `json:"network"`
	Test    bool              `json:"test"`
	Tags    map[string]string `json:"tags,omitempty"`
	// Firmware and GuestID are vCenter's words for what boots.
	Firmware string `json:"firmware,omitempty"`
	GuestID  string `json:"guestId,omitempty"`
	PlanRun  string `json:"planRun,omitempty"` // of the plan that asked
}

// MachineOf is what a VM becomes in the target, in its own network, by the run.
func MachineOf(vm VM, disks []VMDisk, t Target, run string, point replica.Point) CreateMachineInput {
	return CreateMachineInput{
		Machine: vm.Machine, Name: vm.Name, Run: run, Point: point, Disks: disks,
		CPUs: vm.CPUs, Memory: vm.MemoryMB, Target: t, Network: t.Network, Tags: t.Tags,
		Firmware: vm.Firmware, GuestID: vm.GuestID,
	}
}

// TestOf is what it becomes in a test: another name, in the network, or without one in
// the target's for tests.
func TestOf(vm VM, disks []VMDisk, t Target, run string, point replica.Point, network string) CreateMachineInput {
	in := MachineOf(vm, disks, t, run, point)
	in.Name, in.Test, in.Network = TestName(vm), true, t.TestNetwork
	if network != "" {
		in.Network = network
	}
	return in
}

// TargetRef names a target machine.
type TargetRef struct {
	Name string `json:"name"`
	Run  string `json:"run"`
}

// RelayInput names the machine that needs the temporary process server, or does not any more.
type RelayInput struct {
	Machine ident.MachineID `json:"machine"`
}

// Relay is the temporary process server in the target.
type Relay struct {
	Name    string `json:"name"`
	Address string `json:"address"` // host:port, for agents in the target
}

// CheckResult is the health check of a started machine.
type CheckResult struct {
	Ready    bool   `json:"ready"`
	Evidence string `json:"evidence"`
}

// PrecheckInput asks what the target would refuse if the machine failed over now.
type PrecheckInput struct {
	Machine ident.MachineID `json:"machine"`
	Kind    PlanKind        `json:"kind"`
	Network string          `json:"network,omitempty"` // a test's, instead of the machine's own
	// Location (reprotect) is where its VM is to be made anew.
	Location *Location `json:"location,omitempty"`
}

// DoneBefore says whether a machine is already what an action would make of it.
type DoneBefore struct {
	Done   bool         `json:"done"`
	Result ActionResult `json:"result"`
}

// DoneBefore reports whether the machine is already what the action would make of it.
func (s MachineStatus) DoneBefore(action string) DoneBefore {
	out := DoneBefore{Result: ActionResult{Machine: s.Machine, Name: s.Name, Action: action, State: s.State, Point: s.FailoverTo, Target: s.Target}}
	test := s.Test != nil && !s.Test.Cleaned
	switch action {
	case ActionTestFailover:
		out.Done = test && s.Test.Machine != nil
		if out.Done {
			out.Result.Target, out.Result.Point = s.Test.Machine, &s.Test.Point
		}
	case ActionCleanup:
		out.Done = !test
	case ActionFailover:
		out.Done = s.State == StateFailedOver
	case ActionCommit:
		out.Done = s.State == StateCommitted
	case ActionReprotect:
		out.Done = s.State == StateProtectedReverse || s.State == StateResyncRequired && s.Assignment.Role == ident.RoleMasterTarget
	case ActionFailback:
		out.Done = s.State == StateFailedBack
	case ActionReenable:
		out.Done = s.State == StateProtected
	case ActionRollBack:
		out.Done = s.State == StateProtected || s.State == StateCommitted
	}
	out.Result.Message = "it was so already"
	return out
}

// ScriptInput runs a plan's script.
type ScriptInput struct {
	Plan   string       `json:"plan"`
	Run    string       `json:"run"`
	Step   string       `json:"step"`
	Kind   PlanKind     `json:"kind"`
	Script ScriptAction `json:"script"`
}

// WebhookInput posts to a plan's webhook.
type WebhookInput struct {
	Plan    string        `json:"plan"`
	Run     string        `json:"run"`
	Step    string        `json:"step"`
	Kind    PlanKind      `json:"kind"`
	Webhook WebhookAction `json:"webhook"`
}

// RunbookInput runs a plan's runbook.
type RunbookInput struct {
	Plan    string        `json:"plan"`
	Run     string        `json:"run"`
	Step    string        `json:"step"`
	Kind    PlanKind      `json:"kind"`
	Group   string        `json:"group,omitempty"` // empty: before or after all groups
	Runbook RunbookAction `json:"runbook"`
	// Machines of the group, or of the plan.
	Machines []RunbookMachine `json:"machines,omitempty"`
}

// RunbookMachine is a machine as a runbook gets it.
type RunbookMachine struct {
	Machine ident.MachineID `json:"machine"`
	Name    string          `json:"name"`
	// TargetName and TargetRun name the machine on the target; empty before there is one.
	TargetName string    `json:"targetName,omitempty"`
	TargetRun  string    `json:"targetRun,omitempty"`
	Point      ident.Seq `json:"point,omitempty"`
}

// ActionOutput is what an action printed (its end, at most 4 KiB) and came to.
type ActionOutput struct {
	Exit   int      `json:"exit"`
	Output string   `json:"output"`
	Took   Duration `json:"took"`
}

// Notification goes to mail and webhook.
type Notification struct {
	Subject string          `json:"subject"`
	Problem Problem         `json:"problem"`
	Machine ident.MachineID `json:"machine"`
}
