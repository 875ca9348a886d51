// Package failpoint names the places where a process may be killed without harm, so
// that a test can kill it at each of them. In programs that are not built with the
// tag failpoint, Hit does nothing.
//
//	DROVER_FAILPOINT=spool-synced:3    SIGKILL when the place is reached for the third time
package failpoint

// Variable is the environment's variable that says where to end.
const Variable = "DROVER_FAILPOINT"

// The places, in the order in which data passes them.
const (
	AgentRead       = "agent-read"       // changed blocks were read, and not sent
	AgentSend       = "agent-send"       // data was sent, its set is not ended
	SpoolWrite      = "spool-write"      // data was written to the spool
	SpoolSync       = "spool-sync"       // a set is whole and not synced
	SpoolSynced     = "spool-synced"     // its data is durable, its name is not
	SpoolCommitted  = "spool-committed"  // it is durable
	Ack             = "ack"              // it is on its way to the cache, and not acknowledged
	Store           = "store"            // before the upload to the cache storage
	Stored          = "stored"           // after it
	UndoWritten     = "undo-written"     // old content was appended, and not synced
	UndoSynced      = "undo-synced"      // and is durable
	Pending         = "pending"          // the set whose writing begins is noted
	ImageWritten    = "image-written"    // an extent was written
	ImageSynced     = "image-synced"     // a disk's data is durable, its checksums are not
	SumsSynced      = "sums-synced"      // they are, too
	UndoCreated     = "undo-created"     // the new point's undo file is there
	Manifest        = "manifest"         // before the manifest is published
	Published       = "published"        // after it
	Applied         = "applied"          // the set lies in spool and cache still
	DeletePlanned   = "delete-planned"   // it is noted which points go
	DeleteMerged    = "delete-merged"    // undo was appended to an older point's
	DeleteSynced    = "delete-synced"    // and is durable
	DeletePublished = "delete-published" // the points are gone, their files are not
	DeleteFiles     = "delete-files"     // their files are, too, and the plan is not
)

// The places of an agent's enrolment, and of the renewal of its certificate.
const (
	EnrolKey      = "enrol-key"      // the key is made, nothing is sent
	EnrolAnswered = "enrol-answered" // the token is used up, nothing of the answer is kept
	IdentityKey   = "identity-key"   // the new key waits beside the old one
	IdentityCA    = "identity-ca"    // and the CA is there
	IdentityCert  = "identity-cert"  // and the certificate, whose key still waits
	IdentityKept  = "identity-kept"  // all is durable
)

// The places of a freeze, in their order.
const (
	FreezeMarked  = "freeze-marked"  // it is noted, and nothing was begun
	FreezeGuarded = "freeze-guarded" // the guard runs
	FreezeScripts = "freeze-scripts" // scripts were told to freeze
	FreezePre     = "freeze-pre"     // the program too
	FreezeBegun   = "freeze-begun"   // the guard was told to freeze
	FreezeFrozen  = "freeze-frozen"  // all file systems are frozen
	ThawBegun     = "thaw-begun"     // the guard was told to thaw
	ThawThawed    = "thaw-thawed"    // they go on, programs and scripts were not told
	ThawTold      = "thaw-told"      // they were, and the note is there still
)

// Enrolment lists the places of an enrolment.
var Enrolment = []string{EnrolKey, EnrolAnswered, IdentityKey, IdentityCA, IdentityCert, IdentityKept}

// Freeze lists the places of a freeze.
var Freeze = []string{FreezeMarked, FreezeGuarded, FreezeScripts, FreezePre, FreezeBegun, FreezeFrozen, ThawBegun, ThawThawed, ThawTold}

// Names lists the places that data passes.
var Names = []string{
	AgentRead, AgentSend, SpoolWrite, SpoolSync, SpoolSynced, SpoolCommitted, Ack, Store, Stored,
	UndoWritten, UndoSynced, Pending, ImageWritten, ImageSynced, SumsSynced, UndoCreated, Manifest, Published, Applied,
	DeletePlanned, DeleteMerged, DeleteSynced, DeletePublished, DeleteFiles,
}

// Places of the store of page blobs alone.
const (
	SnapshotMade = "snapshot-made" // a disk's snapshots are made, the point's manifest is not
	PointWritten = "point-written" // it is, and the state does not list it
	LeaseBroken  = "lease-broken"  // another's lease is broken, the blob has none
	LeaseTaken   = "lease-taken"   // the blob has ours, and what it was taken for is not done
)

// PageBlobNames lists the places that a machine's change sets pass in a store of page blobs.
var PageBlobNames = []string{
	Store, Stored, Pending, ImageWritten, SumsSynced, SnapshotMade, PointWritten, Manifest, Published, Applied,
	DeletePlanned, DeletePublished, DeleteFiles, LeaseBroken, LeaseTaken,
}
