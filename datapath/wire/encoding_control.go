package wire

import (
	"fmt"
	"time"

	"drover/datapath/changeset"
	"drover/datapath/checksum"
)

func (d *decoder) duration() time.Duration { return time.Duration(d.i64()) }

func (m *Ack) marshal(e *encoder) {
	e.u8(uint8(m.Level))
	e.position(m.Position)
}

func (m *Ack) unmarshal(d *decoder) {
	m.Level = Level(d.u8())
	m.Position = d.position()
}

// Validate checks the fields.
func (m *Ack) Validate() error {
	if m.Level < Spooled || m.Level > Applied || m.Position.Seq == 0 {
		return fmt.Errorf("level %d of position %s", m.Level, m.Position)
	}
	return nil
}

func (m *SumsQuery) marshal(e *encoder) {
	e.u32(uint32(m.Disk))
	e.u32(uint32(m.Level))
	e.i64(m.First)
	e.u32(uint32(m.Count))
}

func (m *SumsQuery) unmarshal(d *decoder) {
	m.Disk = d.index()
	m.Level = d.index()
	m.First = d.i64()
	m.Count = d.index()
}

// Validate checks the fields.
func (m *SumsQuery) Validate() error { return validSums(m.Disk, m.Level, m.First, m.Count) }

func (m *Sums) marshal(e *encoder) {
	e.u32(uint32(m.Disk))
	e.u32(uint32(m.Level))
	e.i64(m.First)
	e.u32(uint32(len(m.Sums)))
	e.sums(m.Sums)
}

func (m *Sums) unmarshal(d *decoder) {
	m.Disk = d.index()
	m.Level = d.index()
	m.First = d.i64()
	n := d.index()
	if n > checksum.MaxSums {
		d.fail("%d sums, at most %d", n, checksum.MaxSums)
		return
	}
	m.Sums = d.sums(m.Sums, n)
}

// Validate checks the fields.
func (m *Sums) Validate() error { return validSums(m.Disk, m.Level, m.First, len(m.Sums)) }

func validSums(disk, level int, first int64, count int) error {
	switch {
	case level < 0 || level > checksum.MaxLevel:
		return fmt.Errorf("level %d, at most %d", level, checksum.MaxLevel)
	case first < 0 || first > checksum.Blocks(changeset.MaxDiskSize):
		return fmt.Errorf("first sum %d out of range", first)
	case count <= 0 || count > checksum.MaxSums:
		return fmt.Errorf("%d sums, want 1 to %d", count, checksum.MaxSums)
	}
	return validDisk(disk)
}

func (m *Progress) marshal(e *encoder) {
	e.u32(uint32(m.Disk))
	e.i64(m.Done)
	e.i64(m.Total)
}

func (m *Progress) unmarshal(d *decoder) {
	m.Disk = d.index()
	m.Done = d.i64()
	m.Total = d.i64()
}

// Validate checks the fields.
func (m *Progress) Validate() error {
	if m.Done < 0 || m.Done > m.Total || m.Total > changeset.MaxDiskSize {
		return fmt.Errorf("progress %d of %d", m.Done, m.Total)
	}
	return validDisk(m.Disk)
}

func (m *Command) marshal(e *encoder) {
	e.u8(uint8(m.Order))
	e.u32(m.ID)
}

func (m *Command) unmarshal(d *decoder) {
	m.Order = Order(d.u8())
	m.ID = d.u32()
}

// Validate checks the fields.
func (m *Command) Validate() error {
	if m.Order < OrderCut || m.Order > OrderRelease {
		return fmt.Errorf("unknown order %d", m.Order)
	}
	return nil
}

func (m *Ping) marshal(e *encoder)   { e.time(m.Time) }
func (m *Ping) unmarshal(d *decoder) { m.Time = d.time() }

// Validate checks the fields.
func (m *Ping) Validate() error { return validTime("time", m.Time) }

func (m *Pong) marshal(e *encoder)   { e.time(m.Time) }
func (m *Pong) unmarshal(d *decoder) { m.Time = d.time() }

// Validate checks the fields.
func (m *Pong) Validate() error { return validTime("time", m.Time) }

var codeNames = map[Code]string{
	CodeBadFrame: "bad-frame", CodeVersion: "version", CodeIdentity: "identity", CodeUnknownMachine: "unknown-machine",
	CodeEpoch: "epoch", CodeDisks: "disks", CodeResyncRequired: "resync-required", CodeFull: "full", CodeBusy: "busy",
	CodeGap: "gap", CodeInternal: "internal", CodeStopped: "stopped",
}

// String gives a short word, also fit for a metric's label.
func (c Code) String() string {
	if s, ok := codeNames[c]; ok {
		return s
	}
	return fmt.Sprintf("code-%d", uint16(c))
}

var kindNames = [...]string{
	KindHello: "Hello", KindWelcome: "Welcome", KindRefuse: "Refuse", KindBegin: "Begin", KindData: "Data",
	KindEnd: "End", KindAck: "Ack", KindSumsQuery: "SumsQuery", KindSums: "Sums", KindProgress: "Progress",
	KindCommand: "Command", KindPing: "Ping", KindPong: "Pong",
	KindVerify: "Verify", KindVerifyQuery: "VerifyQuery", KindVerifySums: "VerifySums", KindVerifyResult: "VerifyResult",
	KindBarrier: "Barrier", KindReached: "Reached",
}

// String gives the message's name.
func (k Kind) String() string {
	if int(k) < len(kindNames) && kindNames[k] != "" {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// KindOf gives a message's kind.
func KindOf(m Message) Kind { return m.kind() }
