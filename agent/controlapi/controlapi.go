// Package controlapi is the HTTPS API of the configuration server (port 443) as
// its agents, process servers and master targets see it: the messages and the
// client. JSON over TLS 1.3; every call but Enrol needs a client certificate.
//
//	POST /v1/enrol       EnrolRequest   -> EnrolResponse     token instead of a certificate
//	POST /v1/renew       RenewRequest   -> EnrolResponse
//	GET  /v1/assignment?version=N&wait=20s -> Assignment     agents; long poll
//	POST /v1/heartbeat   Heartbeat      -> HeartbeatResponse agents and servers
//	GET  /v1/machines/{id}/key?key=K    -> Key               process servers, master targets
package controlapi

import (
	"time"

	"drover/datapath/health"
	"drover/datapath/ident"
)

// Limits of the API.
const (
	MaxBody     = 1 << 20 // bytes of any request or response
	MaxLongPoll = 30 * time.Second
)

// EnrolRequest asks for the first certificate. The token proves the right to it:
// "<CA fingerprint, SHA-256 hex>.<secret>", single use, 15 to 60 minutes, bound
// to the identity it was issued for.
type EnrolRequest struct {
	Secret string `json:"secret"` // the token's second part; the first is checked by the client
	CSR    []byte `json:"csr"`    // PKCS#10, DER; its subject is ignored
	// Instance is the hardware uuid (DMI product uuid) of the machine that asks. For
	// an agent it must be the one the token is bound to.
	Instance string `json:"instance"`
	Version  string `json:"version"`
	// DataAddress is where a process server or master target takes agents' data.
	DataAddress string `json:"dataAddress,omitempty"`
}

// EnrolResponse carries the certificate and the CA that issued it, both PEM.
type EnrolResponse struct {
	Certificate string `json:"certificate"`
	CA          string `json:"ca"`
}

// RenewRequest asks for a new certificate with the same name.
type RenewRequest struct {
	CSR []byte `json:"csr"`
}

// Action is what an agent is to do.
type Action string

// The actions.
const (
	ActionStandby   Action = "standby"   // do nothing: not assigned, or another instance is
	ActionReplicate Action = "replicate" // stream to Address
)

// Assignment tells an agent what to do. Version rises with every change.
type Assignment struct {
	Version  uint64          `json:"version"`
	Action   Action          `json:"action"`
	Machine  ident.MachineID `json:"machine"`
	Epoch    ident.Epoch     `json:"epoch"`
	Instance string          `json:"instance"` // the hardware uuid that is meant; any other stands by
	Server   string          `json:"server"`   // name in the server's certificate
	Role     ident.Role      `json:"role"`     // process-server or master-target
	Address  string          `json:"address"`  // host:port
	// Via is the relay (host:port) that leads to Address; empty: it is reached directly, or
	// through the agent's own proxy.
	Via string `json:"via,omitempty"`
	// Reach, of a standby: the agent sees whether it reaches the server, and tells with its
	// heartbeats. Older agents do not.
	Reach  bool   `json:"reach,omitempty"`
	Disks  []Disk `json:"disks"`
	Reason string `json:"reason,omitempty"`
	// Group is the machine's consistency group. It is not the agent's matter: the control
	// plane keeps the group on one server.
	Group string `json:"group,omitempty"`
}

// Disk is a disk to replicate. The agent finds its device by the backing's uuid.
type Disk struct {
	ID          ident.DiskID `json:"id"`
	BackingUUID string       `json:"backingUUID"`
	Size        int64        `json:"size"`
}

// Heartbeat tells the configuration server that its sender lives.
type Heartbeat struct {
	Instance  string     `json:"instance"`
	Version   string     `json:"version"`
	Time      time.Time  `json:"time"`
	State     string     `json:"state"` // one word for people, e.g. "streaming"
	Detail    string     `json:"detail,omitempty"`
	Inventory *Inventory `json:"inventory,omitempty"`
	// DataAddress, of a process server or master target.
	DataAddress string `json:"dataAddress,omitempty"`
	// Health, of a process server or master target.
	Health *health.Report `json:"health,omitempty"`
	// Reached, of an agent that was asked to see whether it reaches a server.
	Reached *Reached `json:"reached,omitempty"`
}

// Reached is whether an agent reaches a server.
type Reached struct {
	Address string `json:"address"` // of the server, host:port
	Via     string `json:"via,omitempty"`
	Error   string `json:"error,omitempty"` // empty: it does
}

// HeartbeatResponse carries the server's clock.
type HeartbeatResponse struct {
	Time time.Time `json:"time"`
	// Revoked certificates of agents (machine ids), for the servers' deny list.
	Denied []string `json:"denied,omitempty"`
}

// Key is a machine's data key; it travels only on this API and is kept only in
// memory by the receiver.
type Key struct {
	ID     string `json:"id"`
	Secret []byte `json:"secret"` // 32 bytes
}

// Error is the body of every response that is not 2xx.
type Error struct {
	Code    string `json:"code"`    // stable, e.g. "DRV-1002"
	Message string `json:"message"` // operation, thing, cause, what to do
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }
