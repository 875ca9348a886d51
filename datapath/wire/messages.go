// Package wire is the protocol between an agent and a process server (or master
// target): TLS 1.3 with certificates on both sides, an HTTP/1.1 Upgrade on port
// 9443, then binary frames, each bounded and with a CRC-32C.
//
// FORMAT.md is the table of the format. The conversation:
//
//	agent                         server
//	Hello                    ->
//	                         <-   Welcome | Refuse
//	SumsQuery                ->                      (compare, when asked to)
//	                         <-   Sums
//	Begin, Data..., End      ->                      (one change set)
//	                         <-   Ack (spooled), Ack (stored)
//	                         <-   Command            (at any time: cut now, stop)
//	                         <-   Barrier            (a step of its group's round)
//	Reached                  ->
//	                         <-   Verify             (compare beside the stream, or stop it)
//	VerifyQuery              ->
//	                         <-   VerifySums
//	VerifyResult             ->
//	Ping                     <->  Pong               (Receive answers a Ping itself)
//
// The first bad frame ends the session. Nothing is resumed inside a change set:
// a set that was not ended does not exist.
package wire

import (
	"time"

	"drover/datapath/changeset"
	"drover/datapath/codec"
	"drover/datapath/ident"
	"drover/datapath/waterfall"
)

// Version is the protocol's version; no other is spoken. FORMAT.md says what each one
// has changed.
const Version = 3

// UpgradeToken is the value of the Upgrade header; Path is what is requested.
const (
	UpgradeToken = "drover/3"
	Path         = "/v1/stream"
)

// Limits that are checked before memory is allocated.
const (
	MaxFrame         = changeset.MaxExtentBytes + 64<<10 // payload bytes
	MaxText          = 1 << 10                           // bytes of a message for people
	HandshakeTimeout = 10 * time.Second
	// IdleTimeout: a side that hears nothing for so long closes; PingInterval keeps
	// an idle session alive.
	IdleTimeout  = 30 * time.Second
	PingInterval = 5 * time.Second
)

// Message is one of the structs below.
type Message interface {
	// Validate checks every field that can be judged without knowing the session;
	// Send and Receive call it.
	Validate() error

	kind() Kind
	marshal(*encoder)
	unmarshal(*decoder)
}

// Hello opens a session.
type Hello struct {
	Machine      ident.MachineID
	Epoch        ident.Epoch
	AgentVersion string
	Instance     string           // hardware uuid of the machine the agent runs on
	Disks        []changeset.Disk // ID and Size; Seed is the server's to say
	// Known is the agent's position: the change set it saw acknowledged last, zero
	// after a start. Outstanding are those it sent after it, oldest first.
	Known       ident.Position
	Outstanding []ident.Position
	SourceTime  time.Time
}

// Mode tells the agent what the replica needs.
type Mode uint8

// The modes of a session.
const (
	// ModeCopy: the replica is empty; send all that is not zero, then a cut with
	// Complete.
	ModeCopy Mode = 1
	// ModeCompare: the base is not trusted; compare checksums, send what differs as
	// base sets, then a cut with Complete.
	ModeCompare Mode = 2
	// ModeDelta: go on from Position. If the agent does not know that position (it
	// was restarted), it compares checksums and sends what differs in its next delta.
	ModeDelta Mode = 3
)

// Welcome accepts a session.
type Welcome struct {
	Nonce      uint64 // of the session; every later frame carries it
	Generation uint32
	Mode       Mode
	Position   ident.Position // where the next change set must follow
	KeyID      string
	Disks      []changeset.Disk // with seeds, in the order that extents refer to
	ServerTime time.Time        // for the clock offset
	// CutInterval is the cadence of crash-consistent cuts.
	CutInterval time.Duration
	// AppInterval is the cadence of application-consistent cuts; 0: none but those that
	// are ordered.
	AppInterval time.Duration
	// GroupWait is how long after CutInterval a machine of a consistency group makes a
	// cut by itself, when no round has come; 0: it is of no group.
	GroupWait time.Duration
	// BaseSetBytes bounds the plain data of one base set.
	BaseSetBytes int64
	// Codec is what the agent encodes chunks with. With Adapt it begins with it and
	// changes as the line and its processors allow.
	Codec codec.Codec
	Adapt bool
}

// Code is why a session was refused or ended.
type Code uint16

// The codes. Their texts and remedies are in docs/errors.md.
const (
	CodeBadFrame       Code = 1  // corrupt, oversize or unexpected frame
	CodeVersion        Code = 2  // another protocol version, or a release of the agent that the server does not take
	CodeIdentity       Code = 3  // the certificate is not for this machine
	CodeUnknownMachine Code = 4  // no grant for the machine here
	CodeEpoch          Code = 5  // another epoch is the owner
	CodeDisks          Code = 6  // not this machine's disks, or sizes differ
	CodeResyncRequired Code = 7  // the machine is marked for resync
	CodeFull           Code = 8  // the spool is full; come back later
	CodeBusy           Code = 9  // too many sessions
	CodeGap            Code = 10 // the change set does not follow
	CodeInternal       Code = 11 // the server failed; its log says why
	CodeStopped        Code = 12 // the grant was revoked, or the server is stopping
)

// Refuse ends a session. Detail is for people.
type Refuse struct {
	Code   Code
	Detail string
	// RetryAfter is when to come back; 0 leaves it to the agent's backoff.
	RetryAfter time.Duration
}

// Begin opens a change set; the server knows the rest of its header. Prev is zero
// when the set before was sent in this session and is not acknowledged yet.
type Begin struct {
	Seq  ident.Seq
	Prev ident.Digest
	Kind changeset.Kind
}

// Data is a chunk of a change set; Disk is the index in Welcome.Disks.
type Data struct {
	changeset.Chunk
	memory []byte // of Chunk.Data, when it was received
}

// Free gives the memory of a received message back. It is not used afterwards.
func (m *Data) Free() {
	if cap(m.memory) == dataMemory {
		memories.Put((*[dataMemory]byte)(m.memory[:dataMemory]))
	}
	m.memory, m.Data = nil, nil
}

// End completes a change set. Extents is how many were sent, to notice loss. Of the cut's
// group only the round is sent: the server knows the rest.
type End struct {
	Seq     ident.Seq
	Extents int64
	Cut     changeset.Cut
	// Answers is the newest command that had come when the cut was begun; 0 none.
	Answers uint32
	// Times are what the agent's stages took for the set's chunks, by disk.
	Times []waterfall.Times
}

// Level is how far data is safe.
type Level uint8

// The levels of an acknowledgement.
const (
	Spooled Level = 1 // fsynced at the process server
	Stored  Level = 2 // in the cache storage
	Applied Level = 3 // in the replica, and a point was made if the cut allows one
)

// Ack acknowledges a change set.
type Ack struct {
	Level    Level
	Position ident.Position
}

// SumsQuery asks for checksums of a disk (index in Welcome.Disks); at most
// checksum.MaxSums.
type SumsQuery struct {
	Disk  int
	Level int
	First int64
	Count int
}

// Sums answers SumsQuery.
type Sums struct {
	Disk  int
	Level int
	First int64
	Sums  []uint64
}

// Progress tells the server how far a base pass is, for people.
type Progress struct {
	Disk int
	// Done of Total bytes of the disk were read and compared or sent.
	Done, Total int64
}

// Order is what a Command asks for.
type Order uint8

// The orders.
const (
	OrderCut      Order = 1 // make a cut now
	OrderFinalCut Order = 2 // freeze, make a cut with Final and stay frozen
	OrderRelease  Order = 3 // thaw after OrderFinalCut and go on
)

// Command asks the agent for something. A newer one replaces the one before, but for
// a release, which is always obeyed first.
type Command struct {
	Order Order
	ID    uint32 // of a cut: rises within a session
}

// Step is a step of a round, in which all machines of a consistency group come to one
// moment. The server orders it; the agent answers with Reached when it is there, and
// waits for the next.
type Step uint8

// The steps.
const (
	// StepSend: send what has changed while the machine runs. It comes first, when
	// scripts follow.
	StepSend Step = 1
	// StepReady: do all that comes before the freeze. With Scripts they are run.
	StepReady Step = 2
	// StepFreeze: freeze.
	StepFreeze Step = 3
	// StepTogether: all are frozen. The cut is of this round; it has no answer.
	StepTogether Step = 4
	// StepAlone: there is no common moment this time. The cut is made all the same, of
	// this machine alone; it has no answer.
	StepAlone Step = 5
)

// Barrier orders a step.
type Barrier struct {
	Round   ident.Round
	Step    Step
	Scripts bool
	Within  time.Duration // how long the server waits for the answer
}

// Reached answers a Barrier.
type Reached struct {
	Round  ident.Round
	Step   Step
	Missed string // why the step was not reached; empty when it was
}

// Verify orders a comparison of source and replica beside the stream. The same ID goes
// on with one that another session began; 0 ends what is under way.
type Verify struct {
	ID   uint64
	Rate int64 // bytes per second that are read at most; 0: no bound
}

// VerifyQuery asks for checksums as of a recovery point: the newest one, or with
// Settle one whose cut begins after the query. Those of level 0 are as of the point of
// the query before. At most checksum.MaxSums, of at most checksum.MaxCompared blocks.
type VerifyQuery struct {
	ID     uint64
	Settle bool
	Disk   int
	Level  int
	First  int64
	Count  int
	// Done of Total bytes of the machine's disks were read.
	Done, Total int64
}

// VerifySums answers VerifyQuery.
type VerifySums struct {
	ID uint64
	Sums
}

// VerifyResult ends a comparison; it has as many disks as Welcome.
type VerifyResult struct {
	ID uint64
	// TooMuch: so much differs that the comparison was given up.
	TooMuch bool
	Disks   []Compared
	Failed  string // why there is no result; empty when there is one
}

// Compared is what a comparison found on one disk, in bytes.
type Compared struct {
	Differed, Mended, Busy int64
	Free                   int64   // was not compared: no file system had it in use
	First                  []int64 // offsets of the first differences, at most MaxFirst
}

// Ping asks for a Pong; both carry the sender's clock.
type Ping struct{ Time time.Time }

// Pong answers a Ping.
type Pong struct{ Time time.Time }

// Kind is a frame's type number.
type Kind uint8

// The frame types.
const (
	KindHello Kind = iota + 1
	KindWelcome
	KindRefuse
	KindBegin
	KindData
	_ // a range of zeros, in version 1
	KindEnd
	KindAck
	KindSumsQuery
	KindSums
	KindProgress
	KindCommand
	KindPing
	KindPong
	KindVerify
	KindVerifyQuery
	KindVerifySums
	KindVerifyResult
	KindBarrier
	KindReached
)

func (*Hello) kind() Kind     { return KindHello }
func (*Welcome) kind() Kind   { return KindWelcome }
func (*Refuse) kind() Kind    { return KindRefuse }
func (*Begin) kind() Kind     { return KindBegin }
func (*Data) kind() Kind      { return KindData }
func (*End) kind() Kind       { return KindEnd }
func (*Ack) kind() Kind       { return KindAck }
func (*SumsQuery) kind() Kind { return KindSumsQuery }
func (*Sums) kind() Kind      { return KindSums }
func (*Progress) kind() Kind  { return KindProgress }
func (*Command) kind() Kind   { return KindCommand }
func (*Ping) kind() Kind      { return KindPing }
func (*Pong) kind() Kind      { return KindPong }

func (*Verify) kind() Kind       { return KindVerify }
func (*VerifyQuery) kind() Kind  { return KindVerifyQuery }
func (*VerifySums) kind() Kind   { return KindVerifySums }
func (*VerifyResult) kind() Kind { return KindVerifyResult }

func (*Barrier) kind() Kind { return KindBarrier }
func (*Reached) kind() Kind { return KindReached }
