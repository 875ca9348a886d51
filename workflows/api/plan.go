package api

import (
	"time"

	"drover/datapath/ident"
)

// Plan is a recovery plan: groups in order, the machines of a group in parallel,
// with actions before and after.
type Plan struct {
	Name   string       `json:"name"`
	Before []PlanAction `json:"before,omitempty"` // around the whole
	Groups []PlanGroup  `json:"groups"`
	After  []PlanAction `json:"after,omitempty"`
	// RTO is the goal for the whole and for each machine, from the start of a run to the
	// checked machine. It stops nothing; drover evidence tells whether it was met.
	RTO Duration `json:"rto,omitempty"`
	// Shutdown is how an unplanned failover brings the sources down.
	Shutdown SourceShutdown `json:"shutdown,omitzero"`
}

// PlanGroup is a group of machines that recover together.
type PlanGroup struct {
	Name     string        `json:"name"`
	Before   []PlanAction  `json:"before,omitempty"`
	Machines []PlanMachine `json:"machines"`
	After    []PlanAction  `json:"after,omitempty"`
}

// PlanMachine is a machine of a group, by the VM's name or machine id.
type PlanMachine struct {
	Name     string `json:"name"`
	Optional bool   `json:"optional,omitempty"` // its failure does not stop the plan
	// Location is where a reprotect makes its VM anew; nil: it takes the original.
	Location *Location `json:"location,omitempty"`
}

// PlanAction is a script, webhook, runbook or manual pause; exactly one of them.
type PlanAction struct {
	Name    string         `json:"name"`
	Script  *ScriptAction  `json:"script,omitempty"`
	Webhook *WebhookAction `json:"webhook,omitempty"`
	Runbook *RunbookAction `json:"runbook,omitempty"`
	Manual  *ManualAction  `json:"manual,omitempty"`
	// On limits it to some kinds of run; empty is all of test, planned, unplanned
	// and failback.
	On []PlanKind `json:"on,omitempty"`
	// Timeout of one try; default 5m (manual: 24h). Retries after the first try.
	Timeout Duration `json:"timeout,omitempty"`
	Retries int      `json:"retries,omitempty"`
	// OnError: "stop" (default), "continue" or "ask".
	OnError string `json:"onError,omitempty"`
}

// ScriptAction runs a program from the configuration server's script directory:
// no shell, arguments as given.
type ScriptAction struct {
	File string   `json:"file"` // a plain name in the script directory
	Args []string `json:"args,omitempty"`
	// SHA256 of the file, in hex: any other content is not run.
	SHA256 string `json:"sha256,omitempty"`
}

// WebhookAction posts JSON to a URL of the configuration server's allow list.
type WebhookAction struct {
	URL string `json:"url"`
}

// RunbookAction runs a runbook of the target's automation account. It gets the
// parameter RecoveryPlanContext besides its own.
type RunbookAction struct {
	Name       string            `json:"name"`
	Parameters map[string]string `json:"parameters,omitempty"`
}

// ManualAction waits for a person. When nobody comes within the action's timeout it fails,
// and its onError says what then.
type ManualAction struct {
	Instructions string `json:"instructions"`
	// Approvers may approve or reject it; nobody named: everybody may. Names are as the
	// command line or the Temporal UI tells them; neither proves them.
	Approvers []string `json:"approvers,omitempty"`
}

// PlanKind is what a run of a plan does to its machines.
type PlanKind string

// The kinds of run. The actions (scripts, pauses) take part in the first three and in
// failback, and in others only when they name them.
const (
	PlanTest      PlanKind = "test"
	PlanPlanned   PlanKind = "planned"
	PlanUnplanned PlanKind = "unplanned"
	PlanCleanup   PlanKind = "cleanup"
	PlanCommit    PlanKind = "commit"
	PlanReprotect PlanKind = "reprotect"
	PlanFailback  PlanKind = "failback"
	PlanReenable  PlanKind = "reenable"
	// PlanReturn is reprotect, failback and re-enable, one after the other.
	PlanReturn PlanKind = "return"
	// PlanRollBack takes machines back, the last group first: from failovers that are not
	// committed, from a reprotect or a failback.
	PlanRollBack PlanKind = "rollback"
)

// PlanKinds are all kinds.
var PlanKinds = []PlanKind{
	PlanTest, PlanPlanned, PlanUnplanned, PlanCleanup, PlanCommit, PlanReprotect, PlanFailback, PlanReenable, PlanReturn, PlanRollBack,
}

// BringsUp reports whether a run of the kind brings machines up; such runs have an RTO,
// and the plan's actions take part in them.
func (k PlanKind) BringsUp() bool {
	return k == PlanTest || k == PlanPlanned || k == PlanUnplanned || k == PlanFailback
}

// ActionOf is what a kind of run does to its machines.
func ActionOf(kind PlanKind) string {
	switch kind {
	case PlanTest:
		return ActionTestFailover
	case PlanCleanup:
		return ActionCleanup
	case PlanCommit:
		return ActionCommit
	case PlanReprotect:
		return ActionReprotect
	case PlanFailback:
		return ActionFailback
	case PlanReenable:
		return ActionReenable
	case PlanRollBack:
		return ActionRollBack
	}
	return ActionFailover
}

// UndoOf is what puts an action of a kind of run back; "" when nothing does.
func UndoOf(kind PlanKind) string {
	switch kind {
	case PlanTest:
		return ActionCleanup
	case PlanPlanned, PlanUnplanned, PlanReprotect, PlanFailback:
		return ActionRollBack
	}
	return ""
}

// PlanRunInput starts a run of a plan. Plan names one kept in the vault.
type PlanRunInput struct {
	Plan    string      `json:"plan"`
	Kind    PlanKind    `json:"kind"`
	Point   PointChoice `json:"point,omitempty"`
	Network string      `json:"network,omitempty"`
	By      string      `json:"by,omitempty"`
	Reason  string      `json:"reason,omitempty"`
	// Points are recovery points by machine name, for a choice of custom.
	Points map[string]ident.Seq `json:"points,omitempty"`
	// Verify compares every source with its replica before a planned failover or failback.
	Verify bool `json:"verify,omitempty"`
	// CommitAfter, OnTimer and CleanAfter are every machine's; see ActionRequest.
	CommitAfter Duration `json:"commitAfter,omitempty"`
	OnTimer     string   `json:"onTimer,omitempty"`
	CleanAfter  Duration `json:"cleanAfter,omitempty"`
	// HoldFor is how long a run that stopped at a failed step can be gone on with; 0: a day.
	HoldFor Duration `json:"holdFor,omitempty"`
	// PauseBetween pauses a return before its second and its third phase.
	PauseBetween bool `json:"pauseBetween,omitempty"`
	// DryRun lists the steps, with all checks that a run begins with, and does none.
	DryRun bool `json:"dryRun,omitempty"`
}

// Names of a plan run's updates; each is also a signal with the same argument.
const (
	PlanApprove = "approve" // a manual step may go on
	PlanReject  = "reject"  // a manual step fails
	PlanRetry   = "retry"   // a failed step is tried again
	PlanSkip    = "skip"    // a failed step is passed over
	PlanCancel  = "cancel"  // the run stops after what is under way; what it did stays
	PlanBack    = "back"    // the run stops after what is under way, and its machines are taken back
	PlanPause   = "pause"   // no other step is begun
	PlanResume  = "resume"  // steps are begun again
)

// PlanDecisions are the names, in the order of the help texts.
var PlanDecisions = []string{PlanApprove, PlanReject, PlanRetry, PlanSkip, PlanPause, PlanResume, PlanCancel, PlanBack}

// States of a plan run.
const (
	RunRunning   = "running"
	RunWaiting   = "waiting" // for a person, at a manual step or one that asks
	RunStopped   = "stopped" // at a step that failed; it can be gone on with
	RunPaused    = "paused"
	RunBack      = "rolling-back"
	RunDone      = "done"
	RunFailed    = "failed"
	RunCancelled = "cancelled"
	RunUndone    = "rolled-back"
)

// StepDecision is the argument of those updates and signals.
type StepDecision struct {
	Step string `json:"step,omitempty"` // empty: the one that waits
	By   string `json:"by,omitempty"`
	Note string `json:"note,omitempty"`
}

// StepState of a plan's step.
type StepState string

// The states of a step.
const (
	StepPending StepState = "pending"
	StepRunning StepState = "running"
	StepWaiting StepState = "waiting" // for a person
	StepDone    StepState = "done"
	StepFailed  StepState = "failed"
	StepSkipped StepState = "skipped"
)

// PlanStep is one line of a run: an action or a machine.
type PlanStep struct {
	ID       string        `json:"id"` // e.g. "2/app-1", "2/before/check-db"
	Group    string        `json:"group,omitempty"`
	Kind     string        `json:"kind"` // script, webhook, manual, machine
	Name     string        `json:"name"`
	State    StepState     `json:"state"`
	Started  time.Time     `json:"started,omitempty"`
	Finished time.Time     `json:"finished,omitempty"`
	Message  string        `json:"message,omitempty"` // error, instructions or output's end
	Result   *ActionResult `json:"result,omitempty"`
	By       string        `json:"by,omitempty"`
	Problem  string        `json:"problem,omitempty"` // dry run: what the target would refuse
	// Phase is the kind of the step in a return.
	Phase PlanKind  `json:"phase,omitempty"`
	Undo  StepState `json:"undo,omitempty"` // of its undo, when the run was rolled back
}

// PlanStatus answers the plan run's status query and is its result.
type PlanStatus struct {
	Plan     string     `json:"plan"`
	Kind     PlanKind   `json:"kind"`
	State    string     `json:"state"` // one of Run...
	Steps    []PlanStep `json:"steps"`
	Started  time.Time  `json:"started"`
	Finished time.Time  `json:"finished,omitempty"`
	RTO      Duration   `json:"rto,omitempty"`
	Message  string     `json:"message,omitempty"`
}
