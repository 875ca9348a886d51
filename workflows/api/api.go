// Package api is what workflows, activities, the CLI and the Temporal UI say to
// each other: names, inputs, results, states. It is pure: no I/O, no clock, and
// nothing of the Temporal SDK, so that workflows may import it.
//
// Everything here ends up in workflow histories. Fields are only added, names
// never change, and nothing secret ever goes in.
package api

import (
	"time"

	"drover/datapath/health"
	"drover/datapath/ident"
	"drover/datapath/release"
	"drover/datapath/replica"
)

// Workflow types. They stand in histories: never rename.
const (
	WorkflowMachine            = "ProtectedMachine"
	WorkflowInitialReplication = "InitialReplication"
	WorkflowResync             = "Resync"
	WorkflowFailover           = "Failover"
	WorkflowTestFailover       = "TestFailover"
	WorkflowReprotect          = "Reprotect"
	WorkflowFailback           = "Failback"
	WorkflowReenable           = "ReenableReplication"
	WorkflowRollBack           = "RollBack"    // a failover, reprotect or failback is put back
	WorkflowChangePoint        = "ChangePoint" // of a failover that is not committed
	WorkflowRecoveryPlan       = "RecoveryPlan"
	WorkflowDiscovery          = "Discovery"
	WorkflowVault              = "Vault"
	WorkflowListPoints         = "ListPoints"
	WorkflowListServers        = "ListServers"  // nothing -> []ServerStatus
	WorkflowListAgents         = "ListAgents"   // ListAgentsInput -> ListAgentsResult
	WorkflowCheckPlan          = "CheckPlan"    // Plan -> []FieldError: what would be refused
	WorkflowPush               = "PushAgent"    // PushInput -> PushResult
	WorkflowCheckVCenter       = "CheckVCenter" // CheckVCenterInput -> VCenterCheck
	WorkflowResyncWindow       = "ResyncWindow"
	WorkflowVerify             = "Verify" // VerifyInput -> stream.SignedRecord: source and replica compared
)

// Task queues. A process server or master target also has its own: HostQueue.
const ControlQueue = "drover-control"

// HostQueue is the task queue of one process server or master target.
func HostQueue(server string) string { return "drover-host-" + server }

// VaultID is the workflow id of the one vault of a namespace.
const VaultID = "vault"

// MachineWorkflowPrefix is what the ids of machines' workflows begin with.
const MachineWorkflowPrefix = "machine-"

// MachineWorkflowID is the workflow id of a machine's entity.
func MachineWorkflowID(id ident.MachineID) string { return MachineWorkflowPrefix + id.String() }

// VerifyWorkflowID is the workflow id of the comparison of a machine's source with its
// replica: one at a time, and who asks again joins it.
func VerifyWorkflowID(id ident.MachineID) string { return "verify-" + id.String() }

// DiscoveryWorkflowID is the workflow id of a vCenter's discovery.
func DiscoveryWorkflowID(vcenter string) string { return "discovery-" + vcenter }

// State of a protected machine.
type State string

// The states, in the order of a machine's life.
const (
	StateEnabling           State = "Enabling"
	StateInitialReplication State = "InitialReplication"
	StateProtected          State = "Protected"
	StateResyncRequired     State = "ResyncRequired"
	StateResyncing          State = "Resyncing"
	StatePaused             State = "Paused"
	StateFailingOver        State = "FailingOver"
	StateFailedOver         State = "FailedOver" // not committed
	StateCommitted          State = "Committed"
	StateReprotecting       State = "Reprotecting"
	StateProtectedReverse   State = "ProtectedReverse"
	StateFailingBack        State = "FailingBack"
	StateFailedBack         State = "FailedBack"
	StateDisabled           State = "Disabled"
)

// Health of a machine.
type Health string

// The healths, worst last.
const (
	Healthy  Health = "Healthy"
	Warning  Health = "Warning"
	Critical Health = "Critical"
)

// Problem is an entry of a machine's list of errors.
type Problem struct {
	Code      string `json:"code"`      // stable, e.g. "DRV-3001"
	Component string `json:"component"` // e.g. "process server ps-1"
	Cause     string `json:"cause"`
	Evidence  string `json:"evidence,omitempty"` // what was seen, or where to look
	Action    string `json:"action"`             // what the operator should do
	Health    Health `json:"health"`
	// Failover: with this error, the machine can be failed over to a recovery point it has.
	Failover bool      `json:"failoverPossible"`
	Since    time.Time `json:"since"`
}

// Codes of problems and of application errors; errors.go explains each.
const (
	CodeNotInState       = "DRV-2001" // the action is not possible in this state
	CodeBusy             = "DRV-2002" // another action is running on the machine
	CodeInvalid          = "DRV-2003" // bad input
	CodeNotFound         = "DRV-2004"
	CodeNoAgent          = "DRV-2101"   // no agent enrolled or heard of
	CodeNoServer         = "DRV-2102"   // no process server or master target to take the machine
	CodePush             = "DRV-2104"   // the agent could not be installed in a guest
	CodeAgentVersion     = release.Code // DRV-2105: a release of the agent that the servers do not take
	CodeNoPath           = "DRV-2106"   // the agent does not reach the server that it shall stream to
	CodeServerLost       = "DRV-2103"   // a process server or master target does not answer
	CodeSessionLost      = "DRV-3001"   // no session for longer than the policy allows
	CodeReplicaDamaged   = "DRV-3002"   // gap, corruption or unknown past
	CodeDiskChanged      = "DRV-3003"   // a disk was resized, replaced, added or removed
	CodeForcedShutdown   = "DRV-3004"
	CodeDiskMissing      = "DRV-3005" // a protected disk is not in the guest any more
	CodeDiskNew          = "DRV-3006" // the VM has a disk that is neither protected nor excluded
	CodeRPO              = "DRV-3101" // RPO over the threshold
	CodeResyncFailed     = "DRV-3201"
	CodeResyncPaused     = "DRV-3202" // a resync was stopped before its end
	CodeFenced           = "DRV-3301"
	CodeDiffers          = "DRV-3401" // source and replica differ, and what differs could not be mended
	CodeMended           = "DRV-3402" // source and replica differed; what differed was sent again
	CodeNotCompared      = "DRV-3403" // source and replica could not be compared
	CodeGroupMissed      = "DRV-3501" // a machine keeps its consistency group from points in common
	CodeNoPoint          = "DRV-4001" // no recovery point fits the choice
	CodeNotIsolated      = "DRV-4002" // the test network has a way out
	CodeSourceRunning    = "DRV-4003" // the source could not be shut down
	CodeTarget           = "DRV-4101" // the target refused
	CodeQuota            = "DRV-4102" // the target's quota does not allow it
	CodeTargetDenied     = "DRV-4103" // the identity may not do it on the target
	CodeAddressTaken     = "DRV-4104" // the address to keep is taken, or not in the subnet
	CodeNoCapacity       = "DRV-4105" // the target has no room for any of the sizes
	CodeNotOurs          = "DRV-4106" // something of that name is there that we did not make
	CodeVCenter          = "DRV-4201"
	CodeVCenterAway      = "DRV-4202" // vCenter does not answer
	CodeVMGone           = "DRV-4204" // the VM is not in vCenter any more
	CodeVCenterDenied    = "DRV-4203" // vCenter does not let the user in, or not do it
	CodeActionFailed     = "DRV-4301" // a plan's action failed
	CodeApprovalTimedOut = "DRV-4302"
	CodeInternal         = "DRV-9001"
)

// VM is a machine as vCenter shows it.
type VM struct {
	Machine      ident.MachineID `json:"machine"`
	VCenter      string          `json:"vcenter"` // its name in Drover
	VCenterUUID  string          `json:"vcenterUUID"`
	InstanceUUID string          `json:"instanceUUID"` // of the VM
	BIOSUUID     string          `json:"biosUUID"`     // what the guest sees as DMI product uuid
	Name         string          `json:"name"`
	GuestID      string          `json:"guestId"`
	Firmware     string          `json:"firmware"`
	CPUs         int32           `json:"cpus"`
	MemoryMB     int32           `json:"memoryMB"`
	PoweredOn    bool            `json:"poweredOn"`
	Disks        []VMDisk        `json:"disks"`
	NICs         []VMNIC         `json:"nics"`
	// CoresPerSocket divides CPUs; 0: not known.
	CoresPerSocket int32  `json:"coresPerSocket,omitempty"`
	SecureBoot     bool   `json:"secureBoot,omitempty"`
	Host           string `json:"host,omitempty"`
	Folder         string `json:"folder,omitempty"`
	// Tags are in order, at most MaxVMTags. None may also be that they are not known.
	Tags []VMTag `json:"tags,omitempty"`
}

// VMDisk is a disk of a VM.
type VMDisk struct {
	ID          ident.DiskID `json:"id"`
	Label       string       `json:"label"` // e.g. "Hard disk 1"
	BackingUUID string       `json:"backingUUID"`
	File        string       `json:"file"` // datastore path
	Size        int64        `json:"size"` // bytes
	// At is its place in the VM; without a controller it is not known.
	At Place `json:"at,omitzero"`
}

// Place is where a disk is attached.
type Place struct {
	Controller string `json:"controller"` // pvscsi, lsilogic, lsilogic-sas, buslogic, sata, nvme or ide
	Bus        int32  `json:"bus"`
	Unit       int32  `json:"unit"`
}

// VMNIC is a network card of a VM.
type VMNIC struct {
	Label   string `json:"label"`
	MAC     string `json:"mac"`
	Network string `json:"network"`
	Type    string `json:"type,omitempty"` // e.g. "vmxnet3"
}

// ServerStatus is a process server or master target as the configuration server
// knows it.
type ServerStatus struct {
	Name     string     `json:"name"`
	Role     ident.Role `json:"role"`
	Address  string     `json:"address"` // where agents reach it
	Version  string     `json:"version"`
	LastSeen time.Time  `json:"lastSeen,omitzero"` // zero: never
	Assigned int        `json:"assigned"`          // machines
	// Health is what the server found of itself, and whether it is heard.
	Health health.Report `json:"health"`
}

// PointChoice selects the recovery point of a failover.
type PointChoice string

// The choices. A custom choice is a point's id in PointID.
const (
	PointLatest          PointChoice = "latest"           // process all data received first
	PointLatestProcessed PointChoice = "latest-processed" // newest point that exists
	PointLatestApp       PointChoice = "latest-app-consistent"
	// The newest that all machines of a consistency group have in common; a plan takes the
	// same one for all of them.
	PointLatestMulti    PointChoice = "latest-multi-machine"
	PointLatestMultiApp PointChoice = "latest-multi-machine-app-consistent"
	PointCustom         PointChoice = "custom"
)

// PointChoices are the choices by name, in the order of the help texts.
var PointChoices = []PointChoice{PointLatest, PointLatestProcessed, PointLatestApp, PointLatestMulti, PointLatestMultiApp}

// Common reports whether the choice is of a point in common with other machines.
func (c PointChoice) Common() bool { return c == PointLatestMulti || c == PointLatestMultiApp }

// Names of the machine's updates; each is also a signal with the same argument.
const (
	ActionResync       = "resync"
	ActionPause        = "pause"
	ActionResume       = "resume"
	ActionTestFailover = "test-failover"
	ActionCleanup      = "cleanup-test-failover"
	ActionFailover     = "failover"
	ActionCommit       = "commit"
	ActionReprotect    = "reprotect"
	ActionFailback     = "failback"
	ActionReenable     = "reenable"
	ActionUnprotect    = "unprotect"
	ActionSetPolicy    = "set-policy"
	ActionStopResync   = "stop-resync"
	// ActionRollBack puts back a failover that is not committed (the source runs again), a
	// reprotect (the target's machine goes on alone) or a failback (the target's machine runs again).
	ActionRollBack = "roll-back"
	// ActionChangePoint makes the failed-over machine anew from another recovery point.
	ActionChangePoint = "change-point"
)

// MachineActions lists the actions, in the order of the help texts.
var MachineActions = []string{
	ActionResync, ActionPause, ActionResume, ActionTestFailover, ActionCleanup, ActionFailover,
	ActionChangePoint, ActionCommit, ActionReprotect, ActionFailback, ActionReenable, ActionRollBack, ActionUnprotect, ActionSetPolicy,
	ActionStopResync,
}

// QueryStatus is the query of every workflow of ours: MachineStatus, PlanStatus,
// DiscoveryStatus or VaultStatus.
const QueryStatus = "status"

// ActionRequest is the argument of every machine action, by update or by signal.
type ActionRequest struct {
	// RequestID makes the request idempotent; empty takes the update's id.
	RequestID string `json:"requestId,omitempty"`
	By        string `json:"by,omitempty"`     // principal
	Reason    string `json:"reason,omitempty"` // needed for a forced unplanned failover
	// Failover and test failover.
	Planned  bool        `json:"planned,omitempty"`
	Point    PointChoice `json:"point,omitempty"`
	PointID  ident.Seq   `json:"pointId,omitempty"`
	Network  string      `json:"network,omitempty"`  // test failover: overrides Target.TestNetwork
	PlanRun  string      `json:"planRun,omitempty"`  // the plan run that asks
	Policy   *Policy     `json:"policy,omitempty"`   // set-policy
	KeepData bool        `json:"keepData,omitempty"` // unprotect: keep replica and points
	// PolicyHash is the hash of Policy in the vault.
	PolicyHash string `json:"policyHash,omitempty"`
	// CommitAfter (failover) decides by itself when nobody does so long: OnTimer says what.
	CommitAfter Duration `json:"commitAfter,omitempty"`
	OnTimer     string   `json:"onTimer,omitempty"` // commit (default) or roll-back
	// Shutdown (unplanned failover) is how the source is brought down.
	Shutdown SourceShutdown `json:"shutdown,omitzero"`
	// Location (reprotect) is where the VM is made anew; nil: the original is taken.
	Location *Location `json:"location,omitempty"`
	// Verify (planned failover, failback) compares source and replica first.
	Verify bool `json:"verify,omitempty"`
	// CleanAfter (test failover) deletes what the test made when nobody does so long.
	CleanAfter Duration `json:"cleanAfter,omitempty"`
	// OnlyIfRequired makes a resync do nothing unless the machine is marked for it, and
	// nobody has stopped it (the resync window asks so).
	OnlyIfRequired bool `json:"onlyIfRequired,omitempty"`
	// Window: stop-resync is asked for by the end of a window; the next one goes on.
	Window bool `json:"window,omitempty"`
	// Changed: a resync that the machine asks of itself, for disks that grew or came.
	Changed bool `json:"changed,omitempty"`
	// Exclude and Include (resync) change which disks are not protected, by label or
	// backing uuid.
	Exclude []string `json:"exclude,omitempty"`
	Include []string `json:"include,omitempty"`
}

// MachineInput starts a machine's entity.
type MachineInput struct {
	VM     VM     `json:"vm"`
	Policy Policy `json:"policy"`
	// PolicyHash is its hash in the vault.
	PolicyHash string `json:"policyHash,omitempty"`
	Target     Target `json:"target"`
	Site       string `json:"site,omitempty"`
	// Exclude lists disks (backing uuids or labels) not to protect.
	Exclude []string `json:"exclude,omitempty"`
	// Carry is the entity's own state across continue-as-new; empty at the start.
	Carry *MachineCarry `json:"carry,omitempty"`
}

// MachineCarry is what a machine's entity remembers across continue-as-new.
type MachineCarry struct {
	Status  MachineStatus `json:"status"`
	Counter int           `json:"counter"` // numbers the children
	// Recent holds the results of the last requests by id, for idempotence.
	Recent []RecentRequest `json:"recent,omitempty"`
	Queue  []QueuedAction  `json:"queue,omitempty"`
	// News of the vault that the machine has not taken yet.
	News *VaultNews `json:"news,omitempty"`
	// Version of this record; see workflows/machine/version.go.
	Version int `json:"version"`
	// Joined: the vault knows the machine.
	Joined bool `json:"joined,omitempty"`
	// Assigned is the epoch the machine's agent was last told; lower than the
	// assignment's while the machine is not connected.
	Assigned ident.Epoch `json:"assigned,omitempty"`
	// LastSeen is when the source was last known to stream.
	LastSeen time.Time `json:"lastSeen,omitempty"`
}

// RecentRequest remembers what a request came to.
type RecentRequest struct {
	ID     string       `json:"id"`
	Result ActionResult `json:"result"`
	Error  string       `json:"error,omitempty"`
	Code   string       `json:"code,omitempty"`
}

// QueuedAction is an accepted request that has not begun.
type QueuedAction struct {
	Action  string        `json:"action"`
	Request ActionRequest `json:"request"`
	Asked   time.Time     `json:"asked,omitempty"`
	// Joined are the ids of requests for the same that came meanwhile.
	Joined []string `json:"joined,omitempty"`
}

// Refusal is a request by signal that was refused; updates get the error itself.
type Refusal struct {
	Action string    `json:"action"`
	Code   string    `json:"code"`
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

// MachineStatus answers the machine's status query.
type MachineStatus struct {
	Machine    ident.MachineID `json:"machine"`
	Name       string          `json:"name"`
	State      State           `json:"state"`
	Health     Health          `json:"health"`
	Problems   []Problem       `json:"problems,omitempty"`
	Doing      string          `json:"doing,omitempty"`   // the running action and step
	Child      string          `json:"child,omitempty"`   // workflow id of the runbook under way
	Refused    *Refusal        `json:"refused,omitempty"` // the last request by signal that was refused
	Possible   []string        `json:"possible"`          // actions possible now
	VM         VM              `json:"vm"`
	Policy     string          `json:"policy"`
	Plans      []string        `json:"plans,omitempty"` // that name the machine
	Site       string          `json:"site,omitempty"`
	Assignment Assignment      `json:"assignment"`
	Target     *TargetMachine  `json:"target,omitempty"`
	TargetRun  string          `json:"targetRun,omitempty"` // the failover's workflow id: the target's tags and the point's hold carry it
	Test       *TestResult     `json:"test,omitempty"`
	LastPoint  ident.Seq       `json:"lastPoint,omitempty"`
	FailoverTo *replica.Point  `json:"failoverPoint,omitempty"`
	Transfers  []Transfer      `json:"transfers,omitempty"` // the last 16 base passes
	Since      time.Time       `json:"since"`               // in this state
	Resyncs    int             `json:"resyncs"`
	// ResyncHeld: somebody stopped the resync; nothing but a person starts it again.
	ResyncHeld bool `json:"resyncHeld,omitempty"`
	// PolicyHash is that of the policy in the vault, Follows what the machine has taken of it.
	PolicyHash string   `json:"policyHash,omitempty"`
	Follows    string   `json:"follows,omitempty"`
	Failovers  int      `json:"failovers"`
	PolicySpec Policy   `json:"policySpec"`
	TargetSpec Target   `json:"targetSpec"`
	Protected  []VMDisk `json:"protected"`
	Excluded   []string `json:"excluded,omitempty"` // disks not to protect: backing uuids or labels
	// Agent is what the machine's agent reported last; its LastSeen is of then.
	Agent *AgentReport `json:"agent,omitempty"`
	// Booted is when the guest's present boot was first heard of.
	Booted time.Time `json:"booted,omitzero"`
	// Forced is a stop that was not clean, while the agent has not said what became of it.
	Forced *ForcedStop `json:"forced,omitempty"`
	// Failover is what a roll-back of the failover needs to know.
	Failover *FailoverFrom `json:"failoverFrom,omitempty"`
	// Remade: the VM was made anew, and the machine has not failed back to it yet.
	Remade *Remade `json:"remade,omitempty"`
	// Former are VMs that were the machine's; they are not looked at any more.
	Former []FormerVM `json:"former,omitempty"`
	// Timers are the actions that the machine does by itself when nobody does them before.
	Timers []Timer `json:"timers,omitempty"`
}

// FailoverFrom is how a machine was before its failover.
type FailoverFrom struct {
	State     State `json:"state"`
	SourceOff bool  `json:"sourceOff,omitempty"` // it was switched off before it was shut down
}

// Timer is an action that is due by itself.
type Timer struct {
	Action string    `json:"action"`
	At     time.Time `json:"at"`
}

// TestResult is the last test failover of a machine.
type TestResult struct {
	Started time.Time      `json:"started"`
	Point   replica.Point  `json:"point"`
	Machine *TargetMachine `json:"machine,omitempty"` // nil once cleaned up
	Verdict string         `json:"verdict"`           // "passed", or what failed
	Notes   string         `json:"notes,omitempty"`   // of who cleaned up
	Cleaned bool           `json:"cleaned"`
	Run     string         `json:"run"` // the test's workflow id
	// Passed is when a test of the machine passed last; this one or one before.
	Passed time.Time `json:"passed,omitzero"`
}

// TestEvery is how old a machine's last test that passed may be.
const TestEvery = 183 * 24 * time.Hour

// TestDue is when the machine is to be tested again: zero when it has never passed a test.
func (s MachineStatus) TestDue() time.Time {
	if s.Test == nil || s.Test.Passed.IsZero() {
		return time.Time{}
	}
	return s.Test.Passed.Add(TestEvery)
}

// Assignment says who replicates a machine where.
type Assignment struct {
	Epoch    ident.Epoch `json:"epoch"`
	Server   string      `json:"server"`
	Role     ident.Role  `json:"role"`
	Address  string      `json:"address"`
	Instance string      `json:"instance"`
	// Via is the relay (host:port) in the target that leads to Address; empty: none is needed.
	Via string `json:"via,omitempty"`
}
