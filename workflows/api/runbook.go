package api

import "time"

// SignalStep tells a machine's entity where its running child is, with a
// StepProgress.
const SignalStep = "step"

// StepProgress is one step of a runbook begun.
type StepProgress struct {
	Run  string `json:"run"`  // the child's workflow id
	Step string `json:"step"` // e.g. "4/10 start the machine"
}

// RunbookStatus answers the status query of a machine's child workflows.
type RunbookStatus struct {
	Title string        `json:"title"`
	Steps []RunbookStep `json:"steps"`
}

// RunbookStep is one line of a runbook.
type RunbookStep struct {
	Name     string    `json:"name"`
	State    StepState `json:"state"`
	Undo     StepState `json:"undo,omitempty"` // of its undo, when the runbook went back
	Started  time.Time `json:"started,omitempty"`
	Finished time.Time `json:"finished,omitempty"`
	Message  string    `json:"message,omitempty"`
}
