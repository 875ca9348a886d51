// Package push installs the agent in Linux guests over SSH: it looks whether the guest can
// have it, copies the program, compares the digest, enrols it with a token of its own, and
// has systemd run it. What an earlier try did is found and left as it is.
//
//	push.go     what is needed, and the activity
//	ssh.go      the connection, and whom it trusts
//	install.go  the steps of an installation
//	remove.go   the steps back
package push

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"drover/activities/activityerr"
	"drover/datapath/ident"
	"drover/workflows/api"
)

// Bounds of a push.
const (
	dialTimeout = 20 * time.Second
	runTimeout  = 2 * time.Minute // of one command in the guest
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
	Token  func(machine ident.MachineID, instance string) (string, error)
	Logger *slog.Logger
}

// Activities push agents.
type Activities struct {
	config Config
	known  known
}

// New makes the activities.
func New(c Config) (*Activities, error) {
	if c.Secrets == "" || c.Known == "" || c.Token == nil || c.Logger == nil {
		return nil, errors.New("push: secrets, known hosts, tokens and logger are needed")
	}
	return &Activities{config: c, known: known{file: c.Known}}, nil
}

// Activities gives them by the names of the workflow API.
func (a *Activities) Activities() map[string]any { return map[string]any{api.ActPush: a.Push} }

// Push installs or upgrades the agent, or removes it.
func (a *Activities) Push(ctx context.Context, in api.PushInput) (api.PushResult, error) {
	if in.Machine.IsZero() || in.Instance == "" || in.Address == "" {
		return api.PushResult{}, failed(api.CodeInvalid, nil, "push to %s: want the machine, its hardware uuid and its address", in.Name)
	}
	if a.config.Agents == "" && !in.Remove {
		return api.PushResult{}, failed(api.CodeInvalid, nil, "push to %s: the configuration server has no agents to install; set agents.directory in its configuration", in.Name)
	}
	g, err := a.connect(ctx, in)
	if err != nil {
		return api.PushResult{}, err
	}
	defer g.close()
	if in.Remove {
		err = g.remove(ctx)
	} else {
		err = g.install(ctx)
	}
	g.out.HostKey = g.key
	a.config.Logger.Info("pushed", "machine", in.Name, "address", in.Address, "remove", in.Remove, "steps", len(g.out.Steps), "ok", err == nil)
	return g.out, err
}

// failed makes the error of a push.
func failed(code string, cause error, format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	if cause != nil {
		text += ": " + cause.Error()
	}
	return activityerr.Wrap(code, cause, "%s", text)
}
