package api

import "drover/datapath/ident"

// PushInput installs, upgrades or removes the agent in a Linux guest over SSH.
type PushInput struct {
	Machine  ident.MachineID `json:"machine"`
	Name     string          `json:"name"`
	Instance string          `json:"instance"` // the VM's BIOS uuid, to which the token is bound
	Address  string          `json:"address"`  // host or host:port of its sshd
	// Credentials is a file in the secrets directory: user:, and password: or key:, the name
	// of a private key's file beside it.
	Credentials string `json:"credentials"`
	// HostKey is the fingerprint of the guest's host key, SHA256:...; empty: the one that
	// was recorded when the guest was first met, or the one it shows now, which is recorded.
	HostKey string `json:"hostKey,omitempty"`
	Remove  bool   `json:"remove,omitempty"`
}

// PushStep is one thing that was done or found.
type PushStep struct {
	Name   string `json:"name"`
	Result string `json:"result"`
}

// PushResult is what a push came to.
type PushResult struct {
	Steps   []PushStep `json:"steps"`
	HostKey string     `json:"hostKey"` // that the guest showed
	Version string     `json:"version,omitempty"`
	Started bool       `json:"started"` // its service runs
	// Findings are the agent's own checks of its guest, what is not well first.
	Findings []Finding `json:"findings,omitempty"`
}
