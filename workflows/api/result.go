package api

import (
	"drover/datapath/ident"
	"drover/datapath/replica"
)

// ActionResult is what an action came to.
type ActionResult struct {
	Machine  ident.MachineID `json:"machine"`
	Name     string          `json:"name"`
	Action   string          `json:"action"`
	State    State           `json:"state"` // afterwards
	Message  string          `json:"message"`
	Point    *replica.Point  `json:"point,omitempty"`
	Target   *TargetMachine  `json:"target,omitempty"`
	RPO      Duration        `json:"rpo,omitempty"` // failover: age of the point when the action was asked for
	RTO      Duration        `json:"rto,omitempty"` // failover, failback: from the request to the checked machine
	Transfer *Transfer       `json:"transfer,omitempty"`
	// Loss is what an unplanned failover gave up: from the point's time to the
	// newest moment the source was heard of.
	Loss Duration `json:"loss,omitempty"`
}

// TagRun is a target machine's tag that says which run made it.
const TagRun = "drover-run"

// Brief leaves out what stands in the machine's own status and makes the history and the
// status of a large plan's run too long.
func (r ActionResult) Brief() ActionResult {
	if r.Target != nil {
		target := *r.Target
		target.Disks, target.Tags = nil, nil
		if run, ok := r.Target.Tags[TagRun]; ok {
			target.Tags = map[string]string{TagRun: run}
		}
		r.Target = &target
	}
	if r.Point != nil {
		point := *r.Point
		point.Disks, point.Holds, point.Group = nil, nil, nil
		r.Point = &point
	}
	return r
}

// Transfer says what a base pass (initial replication, resync, reprotect,
// re-enable) moved.
type Transfer struct {
	DiskBytes int64    `json:"diskBytes"`
	DataBytes int64    `json:"dataBytes"` // block data sent
	WireBytes int64    `json:"wireBytes"` // all bytes of the session, both ways
	Took      Duration `json:"took"`
	Cause     string   `json:"cause,omitempty"`
}

// TargetMachine is a machine on the target side.
type TargetMachine struct {
	Name     string            `json:"name"`
	Instance string            `json:"instance"` // hardware uuid its guest sees
	Network  string            `json:"network"`
	Address  string            `json:"address"`
	Size     string            `json:"size"`
	Running  bool              `json:"running"`
	Disks    []TargetDisk      `json:"disks"`
	Tags     map[string]string `json:"tags"`
}

// TargetDisk is a disk of a TargetMachine.
type TargetDisk struct {
	ID          ident.DiskID `json:"id"`
	Name        string       `json:"name"`
	BackingUUID string       `json:"backingUUID"` // as the guest's agent finds it
	Size        int64        `json:"size"`
	Location    string       `json:"location"` // local target: the file
}
