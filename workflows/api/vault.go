package api

import (
	"slices"
	"strings"
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
	// Follows says what the machine has taken of the vault: VaultNews.Digest.
	Follows string `json:"follows,omitempty"`
}

// SignalVault tells a machine's entity what the vault has for it.
const SignalVault = "vault"

// VaultNews is what the vault has for a machine: its policy, and the plans that name
// it. The configuration server sends it to machines that have not taken it yet.
type VaultNews struct {
	Policy     Policy   `json:"policy"`
	PolicyHash string   `json:"policyHash"`
	Plans      []string `json:"plans,omitempty"`
}

// Digest names the content.
func (n VaultNews) Digest() string {
	hash := n.PolicyHash
	if len(hash) > 16 {
		hash = hash[:16]
	}
	return strings.Join(append([]string{n.Policy.Name, hash}, n.Plans...), " ")
}

// News gives what the vault has for one of its machines; false when it does not have
// the machine's policy.
func (v VaultStatus) News(m VaultMember) (VaultNews, bool) {
	var n VaultNews
	for _, p := range v.Policies {
		if p.Policy.Name == m.Policy {
			n.Policy, n.PolicyHash = p.Policy, p.Hash
		}
	}
	for _, p := range v.Plans {
		if p.Plan.names(m) {
			n.Plans = append(n.Plans, p.Plan.Name)
		}
	}
	slices.Sort(n.Plans)
	return n, n.PolicyHash != ""
}

func (p Plan) names(m VaultMember) bool {
	id := m.Machine.String() // a plan may have hundreds of machines
	for _, g := range p.Groups {
		for _, machine := range g.Machines {
			if machine.Name == m.Name || machine.Name == id {
				return true
			}
		}
	}
	return false
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
	Name       string `json:"name"`
	URL        string `json:"url"`                  // https://host/sdk
	Thumbprint string `json:"thumbprint,omitempty"` // SHA-256 of the server's certificate
	// CA is a file in the secrets directory with the authority that signed the
	// certificate; empty: the system's. A thumbprint goes before it.
	CA          string `json:"ca,omitempty"`
	Credentials string `json:"credentials"`
}

// Discovery's update: a full pass now; its result is a DiscoveryStatus.
const DiscoveryRefresh = "refresh"

// QueryVCenter is the discovery's query for how to reach its vCenter alone, a VCenter.
const QueryVCenter = "vcenter"

// DiscoveryStatus answers the discovery's status query.
type DiscoveryStatus struct {
	VCenter  VCenter   `json:"vcenter"`
	UUID     string    `json:"uuid"` // the vCenter's instance uuid
	LastPass time.Time `json:"lastPass"`
	Error    string    `json:"error,omitempty"`
	VMs      VMList    `json:"vms"`
	Passes   int       `json:"passes"` // since the workflow was first started
	// Watching: changes are seen as they happen. Changed is when the last one came.
	Watching bool        `json:"watching,omitempty"`
	Changed  time.Time   `json:"changed,omitzero"`
	Since    time.Time   `json:"since,omitzero"` // of the error
	After    EventCursor `json:"after,omitzero"` // the last event that is known
	// TagsError is why tags of VMs, or some, could not be read; those known before stay.
	TagsError string `json:"tagsError,omitempty"`
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
	// Now resyncs at once, outside the window too, and until all are done.
	Now bool `json:"now,omitempty"`
}

// ResyncWindowResult says what became of the policy's machines in a window.
type ResyncWindowResult struct {
	Resynced []VaultMember `json:"resynced,omitempty"`
	Failed   []VaultMember `json:"failed,omitempty"` // each shows an error with its cause
	Paused   []VaultMember `json:"paused,omitempty"` // they go on in the next window
	Message  string        `json:"message"`
}

// ResyncWindowStatus answers the window's status query.
type ResyncWindowStatus struct {
	ResyncWindowResult
	Running []VaultMember `json:"running,omitempty"`
	Ends    time.Time     `json:"ends,omitzero"`
}

// ResyncWorkInput asks what there is to do in a resync window.
type ResyncWorkInput struct {
	Policy string `json:"policy"`
	Now    bool   `json:"now,omitempty"`
	// Mine are the machines whose resync the asking workflow has under way.
	Mine []ident.MachineID `json:"mine,omitempty"`
}

// ResyncWork is what there is to do.
type ResyncWork struct {
	Open   bool      `json:"open"` // the window, or Now
	Ends   time.Time `json:"ends,omitzero"`
	AtOnce int       `json:"atOnce"` // per server
	Reason string    `json:"reason,omitempty"`
	// Marked are machines of the policy that wait for a resync, at most MaxResyncWork.
	Marked []ResyncCandidate `json:"marked,omitempty"`
	// Others are resyncs under way that are not the asker's, one entry each: its server.
	Others []string `json:"others,omitempty"`
}

// MaxResyncWork bounds the machines of one answer.
const MaxResyncWork = 500

// ResyncCandidate is a machine that waits for a resync.
type ResyncCandidate struct {
	Member VaultMember `json:"member"`
	Server string      `json:"server"`
}
