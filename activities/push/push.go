// Package push installs the agent in Linux guests, over SSH or by VMware Tools: it looks
// whether the guest can have it, copies the program, compares the digest, enrols it with a
// token of its own, and has systemd run it. What an earlier try did is found and left as it
// is.
//
//	push.go     what is needed, and the activity
//	reach.go    what the steps need of a guest
//	ssh.go      the way over its sshd, and whom it trusts
//	tools.go    the way through vCenter and VMware Tools
//	install.go  the steps of an installation
//	remove.go   the steps back
package push

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/goccy/go-yaml"
	"go.temporal.io/sdk/temporal"

	"drover/activities/activityerr"
	"drover/activities/secretfile"
	"drover/activities/vsphere"
	"drover/datapath/ident"
	"drover/workflows/api"
)

// Bounds of a push.
const (
	dialTimeout = 20 * time.Second
	runTimeout  = 2 * time.Minute // of one command in the guest; vsphere.guestProgram is the same
	maxOutput   = 256 << 10       // bytes of one
	maxSecret   = 64 << 10
	maxAgent    = 256 << 20 // bytes of the program
	maxHosts    = 10_000    // host keys that are recorded
)

// Config of the activity.
type Config struct {
	Secrets string // directory of credentials and keys
	// Agents is the directory with drover-agent-linux-ARCH and drover-agent.service.
	Agents string
	// Server is how agents reach the configuration server, https://host:port.
	Server string
	// Known is the file of host keys that were recorded.
	Known string
	// Token makes a token for one machine, which is used once.
	Token func(machine ident.MachineID, instance string) (string, error)
	// InGuest calls f with a VM's guest, into which VMware Tools let us; maybe twice.
	InGuest func(ctx context.Context, vm api.VMRef, as vsphere.GuestUser, f func(*vsphere.Guest) error) error
	Logger  *slog.Logger
}

// Activities push agents.
type Activities struct {
	config Config
	known  known
}

// New makes the activities.
func New(c Config) (*Activities, error) {
	if c.Secrets == "" || c.Known == "" || c.Token == nil || c.InGuest == nil || c.Logger == nil {
		return nil, errors.New("push: secrets, known hosts, tokens, the way into guests and logger are needed")
	}
	return &Activities{config: c, known: known{file: c.Known}}, nil
}

// Activities gives them by the names of the workflow API.
func (a *Activities) Activities() map[string]any { return map[string]any{api.ActPush: a.Push} }

// Push installs or upgrades the agent, or removes it.
func (a *Activities) Push(ctx context.Context, in api.PushInput) (api.PushResult, error) {
	if err := in.Check(); err != nil {
		return api.PushResult{}, failed(api.CodeInvalid, err, "push to %s", in.Name)
	}
	if a.config.Agents == "" && !in.Remove {
		return api.PushResult{}, failed(api.CodeInvalid, nil, "push to %s: the configuration server has no agents to install; set agents.directory in its configuration", in.Name)
	}
	c, err := a.credentials(in.Credentials)
	if err != nil {
		return api.PushResult{}, err
	}
	var out api.PushResult
	if in.By == api.PushByTools {
		out, err = a.byTools(ctx, in, c)
	} else {
		out, err = a.overSSH(ctx, in, c)
	}
	a.config.Logger.Info("pushed", "machine", in.Name, "by", in.By, "remove", in.Remove, "steps", len(out.Steps), "ok", err == nil)
	return out, err
}

// credentials is the file that api.PushInput.Credentials names.
type credentials struct {
	User     string `yaml:"user"`
	Password string `yaml:"password"`
	Key      string `yaml:"key"` // name of the private key's file beside it
}

func (a *Activities) secret(name string) ([]byte, error) {
	return secretfile.Read(a.config.Secrets, "credentials", name, "the file", maxSecret)
}

// credentials reads the file. No error shows what is in it.
func (a *Activities) credentials(name string) (credentials, error) {
	var c credentials
	b, err := a.secret(name)
	if err != nil {
		return c, err
	}
	if yaml.NewDecoder(bytes.NewReader(b), yaml.Strict()).Decode(&c) != nil || c.User == "" || (c.Password == "") == (c.Key == "") {
		return c, failed(api.CodeInvalid, nil, "credentials file %s: want YAML with user:, and one of password: and key:", name)
	}
	return c, nil
}

// failed makes the error of a push. A cause that has a code of its own keeps it.
func failed(code string, cause error, format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	if cause != nil {
		text += ": " + activityerr.Text(cause)
	}
	return activityerr.Wrap(codeOf(cause, code), cause, "%s", text)
}

// codeOf gives the code of an error that has one.
func codeOf(err error, otherwise string) string {
	var app *temporal.ApplicationError
	if errors.As(err, &app) {
		return app.Type()
	}
	return otherwise
}
