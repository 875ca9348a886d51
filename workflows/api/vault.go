package api

import (
	"time"

	"drover/datapath/ident"
)

// Names of the vault's updates.
const (
	VaultApplyPolicy  = "apply-policy"  // ApplyPolicy -> ApplyResult
	VaultApplyPlan    = "apply-plan"    // ApplyPlan -> ApplyResult
	VaultDeletePlan   = "delete-plan"   // name -> ApplyResult
	VaultDeletePolicy = "delete-policy" // name -> ApplyResult
	VaultJoin         = "join"          // VaultMember -> ApplyResult; a machine's entity started
	VaultLeave        = "leave"         // machine id -> ApplyResult
)

// VaultInput starts the vault's entity. Carry is its state across continue-as-new.
type VaultInput struct {
	Carry *VaultStatus `json:"carry,omitempty"`
}

// VaultStatus is the vault: all that the operator has set up.
type VaultStatus struct {
	Policies []StoredPolicy `json:"policies"`
	Plans    []StoredPlan   `json:"plans"`
	Machines []VaultMember  `json:"machines"`
}

// StoredPolicy is a policy with the hash of the text it came from.
type StoredPolicy struct {
	Policy  Policy    `json:"policy"`
	Hash    string    `json:"hash"`
	Applied time.Time `json:"applied"`
	By      string    `json:"by,omitempty"`
}

// StoredPlan is a plan with the hash of the text it came from.
type StoredPlan struct {
	Plan    Plan      `json:"plan"`
	Hash    string    `json:"hash"`
	Applied time.Time `json:"applied"`
	By      string    `json:"by,omitempty"`
}

// VaultMember is a machine under protection.
type VaultMember struct {
	Machine ident.MachineID `json:"machine"`
	Name    string          `json:"name"`
	Policy  string          `json:"policy"`
	// RPOThreshold is its policy's, where a run looks its machines up.
	RPOThreshold Duration `json:"rpoThreshold,omitempty"`
}

// ApplyPolicy is the argument of VaultApplyPolicy.
type ApplyPolicy struct {
	Policy Policy `json:"policy"`
	By     string `json:"by,omitempty"`
}

// ApplyPlan is the argument of VaultApplyPlan.
type ApplyPlan struct {
	Plan Plan   `json:"plan"`
	By   string `json:"by,omitempty"`
}

// ApplyResult says what changed.
type ApplyResult struct {
	Changed bool   `json:"changed"`
	Hash    string `json:"hash"`
	Message string `json:"message"`
}

// DiscoveryInput starts a vCenter's discovery.
type DiscoveryInput struct {
	VCenter VCenter          `json:"vcenter"`
	Carry   *DiscoveryStatus `json:"carry,omitempty"`
}

// VCenter says how to reach a vCenter. Credentials are a reference: the name of a
// file in the configuration server's secrets directory.
type VCenter struct {
	Name        string `json:"name"`
	URL         string `json:"url"`                  // https://host/sdk
	Thumbprint  string `json:"thumbprint,omitempty"` // SHA-256 of the server's certificate
	Credentials string `json:"credentials"`
}

// Discovery's update: a full pass now; its result is a DiscoveryStatus.
const DiscoveryRefresh = "refresh"

// DiscoveryStatus answers the discovery's status query.
type DiscoveryStatus struct {
	VCenter  VCenter   `json:"vcenter"`
	UUID     string    `json:"uuid"` // the vCenter's instance uuid
	LastPass time.Time `json:"lastPass"`
	Error    string    `json:"error,omitempty"`
	VMs      []VM      `json:"vms"`
	Passes   int       `json:"passes"` // since the workflow was first started
}

// PointsInput asks for a machine's recovery points; the workflow ListPoints
// answers with []replica.Point, oldest first.
type PointsInput struct {
	Machine ident.MachineID `json:"machine"`
	// Server asks a process server or master target for the points of its own
	// store (a machine that replicates in reverse); empty: the vault's store.
	Server string `json:"server,omitempty"`
}

// ResyncWindowInput says for which policy the window opens; see WorkflowResyncWindow.
type ResyncWindowInput struct {
	Policy string `json:"policy"`
}

// ResyncWindowResult lists the machines that were asked to resync if marked.
type ResyncWindowResult struct {
	Asked   []VaultMember `json:"asked"`
	Message string        `json:"message"`
}
