// Package status shows people in the guest what the agent is doing: the running agent
// serves it as JSON on a unix socket that only root can reach, and answers nothing else.
package status

import (
	"time"

	"drover/agent/controlapi"
	"drover/datapath/ident"
)

// Status of a running agent.
type Status struct {
	Version  string    `json:"version"`
	Instance string    `json:"instance"`
	PID      int       `json:"pid"`
	Started  time.Time `json:"started"`
	Time     time.Time `json:"time"`  // of this answer
	State    string    `json:"state"` // one word, as in the heartbeats
	Detail   string    `json:"detail,omitempty"`
	// Problems is what somebody should look at; each says what to do.
	Problems   []string                   `json:"problems,omitempty"`
	Identity   Identity                   `json:"identity"`
	Control    Control                    `json:"control"`
	Assignment *controlapi.Assignment     `json:"assignment,omitempty"` // nil before the first
	Position   string                     `json:"position,omitempty"`   // of the last change set that was acknowledged
	Stored     string                     `json:"stored,omitempty"`     // of the last one that is safe in the cache storage
	Tracker    string                     `json:"tracker,omitempty"`    // which, and why
	LastCut    *Cut                       `json:"lastCut,omitempty"`
	Counters   map[string]float64         `json:"counters,omitempty"`
	Limits     Limits                     `json:"limits"`
	Disks      []controlapi.InventoryDisk `json:"disks,omitempty"`
	Preflight  []controlapi.Finding       `json:"preflight,omitempty"`
}

// Identity is who the agent is, and for how long.
type Identity struct {
	Name    string    `json:"name,omitempty"` // empty: not enrolled
	Machine string    `json:"machine,omitempty"`
	Expires time.Time `json:"expires,omitzero"`
	RenewAt time.Time `json:"renewAt,omitzero"`
	Kept    bool      `json:"kept"` // the state directory has the certificate that is in use
}

// Control is how the configuration server is heard.
type Control struct {
	Server     string    `json:"server"`
	LastAnswer time.Time `json:"lastAnswer,omitzero"`
	// Offset is the server's clock minus ours, in seconds; half a round trip exact.
	Offset float64 `json:"offset"`
	Error  string  `json:"error,omitempty"` // why the last heartbeat was not taken
}

// Cut is the last recovery point that the agent made, or tried to make.
type Cut struct {
	Time        time.Time         `json:"time"`
	Consistency ident.Consistency `json:"consistency"`
	Freeze      float64           `json:"freeze"` // seconds
	Complete    bool              `json:"complete,omitempty"`
	Final       bool              `json:"final,omitempty"`
	Note        string            `json:"note,omitempty"`
}

// Limits are the bounds that the agent keeps for the guest's sake.
type Limits struct {
	Memory   int64   `json:"memory"`             // bytes of the Go heap, aimed at
	ReadRate int64   `json:"readRate,omitempty"` // bytes per second; 0: none
	Paused   float64 `json:"paused"`             // seconds that reads waited for the guest's sake
	Pressure string  `json:"pressure,omitempty"` // why they wait now; empty: they do not
}
