package api

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"drover/datapath/ident"
)

// VMList is an inventory. A long one is compressed in histories, which take at most 2 MiB
// at once: some 900 bytes of each VM become 100.
type VMList []VM

// Bounds of a list's text.
const (
	compressVMs = 64 << 10 // bytes from which on it is compressed
	maxVMList   = 64 << 20 // bytes of one that is unpacked
)

// SortVMs orders VMs by name.
func SortVMs(vms []VM) {
	slices.SortFunc(vms, func(x, y VM) int {
		return cmp.Or(cmp.Compare(x.Name, y.Name), cmp.Compare(x.InstanceUUID, y.InstanceUUID))
	})
}

// MarshalJSON writes a list, or the string with the compressed one.
func (l VMList) MarshalJSON() ([]byte, error) {
	plain, err := json.Marshal([]VM(l))
	if err != nil || len(plain) < compressVMs {
		return plain, err
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(plain); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return json.Marshal(base64.StdEncoding.EncodeToString(packed.Bytes()))
}

// UnmarshalJSON reads both.
func (l *VMList) UnmarshalJSON(b []byte) error {
	if len(b) == 0 || b[0] != '"' {
		return json.Unmarshal(b, (*[]VM)(l))
	}
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		return err
	}
	packed, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return fmt.Errorf("list of VMs: %w", err)
	}
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return fmt.Errorf("list of VMs: %w", err)
	}
	plain, err := io.ReadAll(io.LimitReader(z, maxVMList+1))
	if err != nil {
		return fmt.Errorf("list of VMs: %w", err)
	}
	if len(plain) > maxVMList {
		return errors.New("list of VMs: longer than 64 MiB")
	}
	return json.Unmarshal(plain, (*[]VM)(l))
}

// WatchInput watches a vCenter for a while.
type WatchInput struct {
	VCenter VCenter  `json:"vcenter"`
	For     Duration `json:"for"`
	// After is the last event that is known.
	After EventCursor `json:"after"`
}

// EventCursor is a place in a vCenter's events.
type EventCursor struct {
	Key  int32     `json:"key"`
	Time time.Time `json:"time"` // vCenter's clock; zero: from now on
}

// SignalWatched tells the discovery what the watch saw, a WatchReport.
const SignalWatched = "watched"

// WatchReport is what changed in a vCenter.
type WatchReport struct {
	// Full: VMs is all there is. A watch begins with one.
	Full   bool        `json:"full,omitempty"`
	From   string      `json:"from"` // the vCenter's URL
	UUID   string      `json:"uuid"`
	VMs    VMList      `json:"vms,omitempty"`
	Gone   []string    `json:"gone,omitempty"` // instance uuids
	Events []VMEvent   `json:"events,omitempty"`
	After  EventCursor `json:"after"`
	// TagsError is why tags, or some, could not be read.
	TagsError string `json:"tagsError,omitempty"`
}

// SignalVMEvent tells the entity of something that happened to its VM, a VMEvent.
const SignalVMEvent = "vm-event"

// VMEvent is something in a vCenter that the disks' content does not show.
type VMEvent struct {
	Machine ident.MachineID `json:"machine"`
	// Instance is the VM's instance uuid: a machine may have had another VM before.
	Instance string      `json:"instance,omitempty"`
	Kind     VMEventKind `json:"kind"`
	At       time.Time   `json:"at"` // vCenter's clock
	Text     string      `json:"text"`
}

// VMEventKind says what happened.
type VMEventKind string

// The kinds. After all but the last what is on the disks is not known.
const (
	VMPoweredOff  VMEventKind = "powered off by force"
	VMReset       VMEventKind = "reset"
	VMCrashed     VMEventKind = "guest crashed"
	VMHARestarted VMEventKind = "restarted by HA"
	VMReverted    VMEventKind = "reverted to a snapshot"
	VMGone        VMEventKind = "gone"
)

// ForcedStop is a stop of the guest that was not clean, until it is known that the agent
// compares its disks.
type ForcedStop struct {
	Kind VMEventKind `json:"kind"`
	Text string      `json:"text"`
	At   time.Time   `json:"at"`
	Boot string      `json:"boot,omitempty"` // the agent's boot id then
}
