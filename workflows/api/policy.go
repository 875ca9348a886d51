package api

import (
	"drover/datapath/codec"
	"drover/datapath/replica"
	"drover/datapath/stream"
	"drover/datapath/throttle"
)

// Policy is a replication policy.
type Policy struct {
	Name string `json:"name"`
	// RPOThreshold raises an event when passed; it does not influence replication.
	RPOThreshold Duration `json:"rpoThreshold"`
	// CutInterval is the cadence of crash-consistent points (5 s to 1 h).
	CutInterval Duration `json:"cutInterval"`
	// AppConsistentEvery is the cadence of app-consistent points; 0 is off, else 1 h to 12 h.
	AppConsistentEvery Duration `json:"appConsistentEvery"`
	// ConsistencyGroup makes recovery points of one moment with all other machines whose
	// policies name the same group; nil: each machine's are its own.
	ConsistencyGroup *ConsistencyGroup `json:"consistencyGroup,omitempty"`
	Retention        replica.Retention `json:"retention"`
	Resync           ResyncPolicy      `json:"resync"`
	// NewDisks says what becomes of disks that are added to a machine: NewDisksAsk, which
	// is also meant when it is empty, or NewDisksProtect.
	NewDisks string `json:"newDisks,omitempty"`
	// Compression of what is sent and stored; absent is auto, at the agent.
	Compression codec.Choice `json:"compression,omitzero"`
	// Throttle limits the bandwidth of each machine, in windows of time.
	Throttle []throttle.Rule `json:"throttle,omitempty"`
	// Failback is for the way back, while the machine runs in the target; the vault makes
	// it from the rest when it is absent.
	Failback *Policy `json:"failback,omitempty"`
}

// What becomes of disks that are added to a protected machine.
const (
	NewDisksAsk     = "ask"     // they are shown, and protected when somebody orders a resync
	NewDisksProtect = "protect" // they are protected by themselves
)

// ConsistencyGroup names a group, and says for how long its machines wait for each other.
type ConsistencyGroup struct {
	Name string `json:"name"`
	// ReadyWithin bounds the wait until all have sent what has changed, and once more until
	// the scripts of all have run; 0 is 10 s. Nothing is frozen meanwhile.
	ReadyWithin Duration `json:"readyWithin,omitempty"`
	// FrozenWithin bounds the wait until all are frozen; 0 is 1 s.
	FrozenWithin Duration `json:"frozenWithin,omitempty"`
}

// ForFailback is the policy of the way back: its own, or one that is like this one.
func (p Policy) ForFailback() Policy {
	if p.Failback != nil {
		return *p.Failback
	}
	back := p
	back.Name = p.Name + failbackSuffix
	if len(back.Name) > MaxName {
		back.Name = p.Name[:MaxName-len(failbackSuffix)] + failbackSuffix
	}
	return back
}

const failbackSuffix = "-failback"

// Group is the name of the policy's consistency group; empty: none.
func (p Policy) Group() string {
	if p.ConsistencyGroup == nil {
		return ""
	}
	return p.ConsistencyGroup.Name
}

// Stream gives the group as the data path knows it.
func (g *ConsistencyGroup) Stream() *stream.Group {
	if g == nil {
		return nil
	}
	return &stream.Group{Name: g.Name, Ready: g.ReadyWithin.D(), Frozen: g.FrozenWithin.D()}
}

// ResyncPolicy says when a machine is marked for resync and when resync runs.
type ResyncPolicy struct {
	// AfterDisconnect marks a machine that had no session for so long; 0 never.
	AfterDisconnect Duration `json:"afterDisconnect"`
	// Automatic runs it in the window, or at any time when there is none; else by hand only.
	Automatic bool   `json:"automatic"`
	Window    Window `json:"window"`
	// AtOnce is how many machines of a process server are resynchronised in the window at
	// the same time; 0 is DefaultAtOnce.
	AtOnce int `json:"atOnce,omitempty"`
}

// DefaultAtOnce is how many resyncs a window runs per process server.
const DefaultAtOnce = 4

// Limit is AtOnce or its default.
func (p ResyncPolicy) Limit() int {
	if p.AtOnce == 0 {
		return DefaultAtOnce
	}
	return p.AtOnce
}

// Window is a daily window of time.
type Window = throttle.Window
