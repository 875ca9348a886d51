package api

// Functions that need privileges in vCenter, each with those before it.
const (
	VCenterDiscover = "discover"
	VCenterFailover = "failover"
	VCenterFailback = "failback"
	VCenterRemake   = "failback-elsewhere" // make a VM anew, and delete it when the failback is undone
	VCenterPush     = "push"               // of the agent by VMware Tools
)

// VCenterFunctions lists them, in the order of the help texts.
var VCenterFunctions = []string{VCenterDiscover, VCenterFailover, VCenterFailback, VCenterRemake, VCenterPush}

// CheckVCenterInput asks what the user of a vCenter lacks for the functions.
type CheckVCenterInput struct {
	VCenter   string   `json:"vcenter"` // its name
	Functions []string `json:"functions"`
}

// VCenterCheck is what was found.
type VCenterCheck struct {
	User    string             `json:"user"`
	Version string             `json:"version"` // what vCenter says it is
	Objects int                `json:"objects"` // that were looked at
	Missing []MissingPrivilege `json:"missing"`
}

// MaxMissing bounds the objects named for one privilege.
const MaxMissing = 20

// MissingPrivilege is a privilege that the user lacks.
type MissingPrivilege struct {
	Function  string   `json:"function"`
	Privilege string   `json:"privilege"` // vCenter's id
	Kind      string   `json:"kind"`      // of the objects: VirtualMachine, Datastore...
	On        []string `json:"on"`        // their names; the first MaxMissing
	Count     int      `json:"count"`     // of those that lack it
	Of        int      `json:"of"`        // of those that there are
}
