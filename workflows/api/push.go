package api

import (
	"errors"
	"fmt"

	"drover/datapath/ident"
)

// Ways into a guest.
const (
	PushBySSH   = "ssh"   // its sshd
	PushByTools = "tools" // the guest operations of VMware Tools, through vCenter
)

// PushInput installs, upgrades or removes the agent in a Linux guest.
type PushInput struct {
	Machine  ident.MachineID `json:"machine"`
	Name     string          `json:"name"`
	Instance string          `json:"instance"` // the VM's BIOS uuid, to which the token is bound
	// By is the way; empty: SSH.
	By string `json:"by,omitempty"`
	// Address is host or host:port of its sshd; by Tools there is none.
	Address string `json:"address"`
	// VM is whose Tools are asked.
	VM VMRef `json:"vm,omitzero"`
	// Credentials is a file in the secrets directory: user:, and password: or key:, the name
	// of a private key's file beside it. Tools take a password.
	Credentials string `json:"credentials"`
	// HostKey is the fingerprint of the guest's host key, SHA256:...; empty: the one that
	// was recorded when the guest was first met, or the one it shows now, which is recorded.
	// By Tools there is none.
	HostKey string `json:"hostKey,omitempty"`
	Remove  bool   `json:"remove,omitempty"`
}

// Check says what is wrong with the input.
func (in PushInput) Check() error {
	if in.Machine.IsZero() || in.Instance == "" || in.Credentials == "" {
		return errors.New("want the machine, its hardware uuid and credentials")
	}
	switch in.By {
	case "", PushBySSH:
		if in.Address == "" {
			return errors.New("by ssh: want the address of the guest's sshd")
		}
	case PushByTools:
		if in.VM.VCenter == "" || in.VM.InstanceUUID == "" {
			return errors.New("by tools: want the VM's vCenter and instance uuid")
		}
		if in.Address != "" || in.HostKey != "" {
			return errors.New("by tools: neither an address nor a host key is used; they are for ssh")
		}
	default:
		return fmt.Errorf("by %q: want %s or %s", in.By, PushBySSH, PushByTools)
	}
	return nil
}

// PushStep is one thing that was done or found.
type PushStep struct {
	Name   string `json:"name"`
	Result string `json:"result"`
}

// PushResult is what a push came to.
type PushResult struct {
	Steps   []PushStep `json:"steps"`
	HostKey string     `json:"hostKey"` // that the guest showed; empty by Tools
	Version string     `json:"version,omitempty"`
	Started bool       `json:"started"` // its service runs
	// Findings are the agent's own checks of its guest, what is not well first.
	Findings []Finding `json:"findings,omitempty"`
}
