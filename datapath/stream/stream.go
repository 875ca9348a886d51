// Package stream is what the control plane and a process server (or master target)
// say to each other about machines' streams: grants, status, orders. It is pure;
// datapath/server implements it.
package stream

import (
	"context"
	"time"

	"drover/datapath/codec"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/throttle"
	"drover/datapath/waterfall"
)

// Grant lets one machine, in one epoch, stream to this server. Grants are kept
// on disk, so that streaming goes on after a restart without the control plane.
type Grant struct {
	Epoch    ident.Epoch   `json:"epoch"`
	Instance string        `json:"instance"` // the only hardware uuid that may stream
	Spec     replica.Spec  `json:"spec"`
	Cut      time.Duration `json:"cut"` // cadence of cuts
	// App is the cadence of application-consistent cuts; 0: none but ordered ones.
	App time.Duration `json:"app,omitempty"`
	// Group is the consistency group that the machine is of; nil: none.
	Group *Group `json:"group,omitempty"`
	// LossLimit: a machine without a session for longer is marked for resync. 0 never.
	LossLimit time.Duration     `json:"lossLimit"`
	Retention replica.Retention `json:"retention"`
	// Attached: the disks are those attached to this master target, found by their
	// BackingUUID, instead of images in the store.
	Attached bool `json:"attached,omitempty"`
	// Compression says what chunks are encoded with, and where.
	Compression codec.Choice `json:"compression,omitzero"`
	// Throttle limits what the machine may send, by the time of day.
	Throttle []throttle.Rule `json:"throttle,omitempty"`
}

// Phase is what a machine's stream is doing.
type Phase string

// The phases of a stream.
const (
	PhaseWaiting Phase = "waiting" // granted, the agent has not come yet
	PhaseBase    Phase = "base"    // initial copy or resync
	PhaseDelta   Phase = "delta"
	PhaseBroken  Phase = "broken" // marked for resync
)

// Broken says why a machine is marked for resync. It survives restarts.
type Broken struct {
	Code  string    `json:"code"`  // stable, e.g. "DRV-3001"; see docs/errors.md
	Cause string    `json:"cause"` // for people
	Since time.Time `json:"since"`
}

// DiskProgress is how far a base pass is on one disk.
type DiskProgress struct {
	ID    ident.DiskID `json:"id"`
	Name  string       `json:"name"`
	Size  int64        `json:"size"`
	Done  int64        `json:"done"`  // bytes read and compared or sent
	Bytes int64        `json:"bytes"` // data bytes received in this base pass
	// Times are where the time of the disk's chunks went since the grant.
	Times waterfall.Times `json:"times,omitzero"`
}

// Status is a machine's stream as it is now. It is also the heartbeat of the
// replication activity, so it stays small and holds no secret.
type Status struct {
	Machine    ident.MachineID `json:"machine"`
	Epoch      ident.Epoch     `json:"epoch"`
	Phase      Phase           `json:"phase"`
	Broken     *Broken         `json:"broken,omitempty"`
	Connected  bool            `json:"connected"`
	LastSeen   time.Time       `json:"lastSeen"`
	Generation uint32          `json:"generation"`
	Complete   bool            `json:"complete"`
	Spooled    ident.Position  `json:"spooled"`
	Stored     ident.Position  `json:"stored"`
	Applied    ident.Position  `json:"applied"`
	// StoredTime is the source time of the newest stored cut (current RPO);
	// PointTime that of the newest usable point.
	StoredTime time.Time      `json:"storedTime"`
	PointTime  time.Time      `json:"pointTime"`
	LastPoint  ident.Seq      `json:"lastPoint"`
	Points     int            `json:"points"`
	Disks      []DiskProgress `json:"disks"`
	// Since the grant: bytes of data received, bytes on the wire (all frames), bytes
	// written to the cache; and of the running or last base pass alone.
	DataBytes     int64         `json:"dataBytes"`
	WireBytes     int64         `json:"wireBytes"`
	CacheBytes    int64         `json:"cacheBytes"`
	BaseDataBytes int64         `json:"baseDataBytes"`
	BaseWireBytes int64         `json:"baseWireBytes"`
	BaseStarted   time.Time     `json:"baseStarted"`
	BaseFinished  time.Time     `json:"baseFinished"`
	BacklogBytes  int64         `json:"backlogBytes"`
	BacklogSets   int           `json:"backlogSets"`
	ServerTime    time.Time     `json:"serverTime"`
	FreezeLast    time.Duration `json:"freezeLast"`
	// Group is how the machine's consistency group does; nil: it is of none.
	Group *GroupStatus `json:"group,omitempty"`
	// Verify is how far a comparison of source and replica is, when one is running.
	Verify *VerifyProgress `json:"verify,omitempty"`
	// Verified is the newest record that this server has seen of the machine.
	Verified *Verified `json:"verified,omitempty"`
}

// Streams is what the control plane asks of a process server; datapath/server
// implements it.
// All calls are idempotent.
type Streams interface {
	// Grant lets the machine stream. The same or a higher epoch replaces an earlier
	// grant; a lower one is refused with replica.ErrFenced.
	Grant(ctx context.Context, g Grant) error
	// Revoke ends the machine's session, finishes what was acknowledged, and closes
	// the replica. An absent grant or one of a higher epoch is no error.
	Revoke(ctx context.Context, machine ident.MachineID, epoch ident.Epoch) error
	// StartBase begins a new generation (resync): it clears the broken mark and asks
	// the agent to compare. With a generation already under way it changes nothing.
	// rescan reads the stored bytes instead of trusting the checksum map.
	StartBase(ctx context.Context, machine ident.MachineID, epoch ident.Epoch, cause string, rescan bool) error
	// MarkBroken marks the machine for resync.
	MarkBroken(ctx context.Context, machine ident.MachineID, epoch ident.Epoch, b Broken) error
	// Status of one machine; replica.ErrNotFound without a grant.
	Status(machine ident.MachineID) (Status, error)
	// Cut orders a cut and waits until its point exists. With final the source
	// stays frozen afterwards, until Release.
	Cut(ctx context.Context, machine ident.MachineID, epoch ident.Epoch, final bool) (replica.Point, error)
	// Verify compares source and replica while replication runs, and has what differs
	// sent again. The record is bound to a recovery point and also kept in the store.
	Verify(ctx context.Context, machine ident.MachineID, epoch ident.Epoch, order VerifyOrder) (SignedRecord, error)
	// Release thaws a source that a final cut left frozen.
	Release(ctx context.Context, machine ident.MachineID, epoch ident.Epoch) error
}
