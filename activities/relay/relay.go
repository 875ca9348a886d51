// Package relay has the activities for the temporary process server in the target: a
// machine with a relay (datapath/relay), by which failed-over machines that do not reach
// the master target stream back. There is one for all of them. It is made for the first
// and deleted with the last, and who needs it stands in a file of the configuration
// server.
package relay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"drover/activities/activityerr"
	"drover/activities/target"
	"drover/datapath/durable"
	"drover/datapath/ident"
	"drover/workflows/api"
)

// Port is where a relay listens.
const Port = "9443"

// Bounds.
const (
	defaultPoll = 2 * time.Second
	defaultCall = 20 * time.Minute
	// silence: a relay that was heard of within it lives.
	silence  = 30 * time.Second
	keptFile = "relay.json"
)

// Server is a relay that is enrolled.
type Server struct {
	Name     string
	LastSeen time.Time
}

// Config of the activities.
type Config struct {
	// Cloud makes the machine; nil: this target has none.
	Cloud target.Relayer
	// State is the directory of the file that says who needs it.
	State string
	// Server is the configuration server's URL, as machines in the target reach it.
	Server string
	// Token makes a token with which the relay enrols, once.
	Token func(ident.Peer) (string, error)
	// Revoke refuses a relay's certificates from now on; one that never enrolled is no error.
	Revoke func(ident.Peer) error
	// Relays lists those that are enrolled.
	Relays func() ([]Server, error)
	// MasterTargets lists where they lead to (host:port).
	MasterTargets func() ([]string, error)
	Poll          time.Duration // pause between looks whether it has called; 0: 2 s
	// CallHome is how long a machine that was made may take to boot and enrol; 0: 20 minutes.
	CallHome time.Duration
	Logger   *slog.Logger
}

// Activities of the temporary process server.
type Activities struct {
	Config
	turn chan struct{} // one at a time makes or deletes it
}

// New makes the activities.
func New(c Config) *Activities {
	if c.Poll == 0 {
		c.Poll = defaultPoll
	}
	if c.CallHome == 0 {
		c.CallHome = defaultCall
	}
	return &Activities{Config: c, turn: make(chan struct{}, 1)}
}

// Activities gives them by the names of the workflow API.
func (a *Activities) Activities() map[string]any {
	return map[string]any{api.ActAcquireRelay: a.Acquire, api.ActReleaseRelay: a.Release}
}

// kept is the file: who needs the relay, and what it is enrolled as.
type kept struct {
	Machines []ident.MachineID `json:"machines"`
	Relay    string            `json:"relay,omitempty"`
}

func (a *Activities) load() (k kept, err error) {
	b, err := os.ReadFile(filepath.Join(a.State, keptFile))
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &k)
	}
	return k, err
}

func (a *Activities) save(k kept) error {
	b, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(a.State, keptFile), b, 0o600)
}

// wait waits for its turn.
func (a *Activities) wait(ctx context.Context) (end func(), err error) {
	select {
	case a.turn <- struct{}{}:
		return func() { <-a.turn }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Acquire has a relay for the machine, which has called home when it returns.
func (a *Activities) Acquire(ctx context.Context, in api.RelayInput) (api.Relay, error) {
	ctx, end := target.Begin(ctx)
	defer end()
	if a.Cloud == nil {
		return api.Relay{}, activityerr.New(api.CodeInvalid, "a temporary process server for %s: the target of this configuration server has none; configure target.azure.relay, or protect the machine without --relay", in.Machine)
	}
	done, err := a.wait(ctx)
	if err != nil {
		return api.Relay{}, err
	}
	defer done()
	k, err := a.load()
	if err != nil {
		return api.Relay{}, activityerr.Of(err, "read who needs the temporary process server")
	}
	if !slices.Contains(k.Machines, in.Machine) { // before it is made: whoever releases it deletes it
		k.Machines = append(k.Machines, in.Machine)
		if err := a.save(k); err != nil {
			return api.Relay{}, activityerr.Of(err, "note who needs the temporary process server")
		}
	}
	m, err := a.Cloud.MakeRelay(ctx, a.firstBoot)
	if err != nil {
		return api.Relay{}, target.Failed(err, "make the temporary process server")
	}
	if k.Relay != m.Name {
		k.Relay = m.Name
		if err := a.save(k); err != nil {
			return api.Relay{}, activityerr.Of(err, "note the temporary process server")
		}
	}
	if err := a.heard(ctx, m.Name); err != nil {
		return api.Relay{}, err
	}
	return api.Relay{Name: m.Name, Address: net.JoinHostPort(m.Address, Port)}, nil
}

// heard waits until the relay has called.
func (a *Activities) heard(ctx context.Context, name string) error {
	limit := time.Now().Add(a.CallHome)
	for {
		all, err := a.Relays()
		if err != nil {
			return activityerr.Of(err, "look for the temporary process server %s", name)
		}
		for _, r := range all {
			if r.Name == name && time.Since(r.LastSeen) < silence {
				return nil
			}
		}
		if time.Now().After(limit) {
			return activityerr.New(api.CodeTarget, "the temporary process server %s has not called home within %s; look at its boot diagnostics, and whether it reaches %s", name, a.CallHome, a.Server)
		}
		select {
		case <-time.After(a.Poll):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Release lets go of the relay; the last machine that does so deletes it. One that has
// none is no error.
func (a *Activities) Release(ctx context.Context, in api.RelayInput) error {
	ctx, end := target.Begin(ctx)
	defer end()
	done, err := a.wait(ctx)
	if err != nil {
		return err
	}
	defer done()
	k, err := a.load()
	if err != nil {
		return activityerr.Of(err, "read who needs the temporary process server")
	}
	if !slices.Contains(k.Machines, in.Machine) {
		return nil
	}
	k.Machines = slices.DeleteFunc(k.Machines, func(m ident.MachineID) bool { return m == in.Machine })
	if len(k.Machines) == 0 && a.Cloud != nil {
		if err := a.remove(ctx, k.Relay); err != nil {
			return err
		}
		k.Relay = ""
	}
	return activityerr.Of(a.save(k), "note who needs the temporary process server")
}

// remove revokes the relay first: its machine is as good as gone.
func (a *Activities) remove(ctx context.Context, name string) error {
	if name != "" {
		if err := a.Revoke(ident.Peer{Role: ident.RoleRelay, Name: name}); err != nil {
			return activityerr.Of(err, "revoke the temporary process server %s", name)
		}
	}
	if err := a.Cloud.DeleteRelay(ctx); err != nil {
		return target.Failed(err, "delete the temporary process server")
	}
	a.Logger.Info("the temporary process server is deleted", "relay", name)
	return nil
}

// firstBoot is what cloud-init does in the machine: it writes the configuration with a
// token that is good for one enrolment, and starts the service that the image has.
func (a *Activities) firstBoot(name, address string) ([]byte, error) {
	to, err := a.MasterTargets()
	if err != nil {
		return nil, err
	}
	if len(to) == 0 {
		return nil, activityerr.New(api.CodeNoServer, "no master target is enrolled: there is nothing that a temporary process server could lead to")
	}
	token, err := a.Token(ident.Peer{Role: ident.RoleRelay, Name: name})
	if err != nil {
		return nil, err
	}
	config, err := json.Marshal(map[string]any{
		"name": name, "role": ident.RoleRelay, "state": "/var/lib/drover", "listen": ":" + Port, "advertise": net.JoinHostPort(address, Port),
		"configServer": a.Server, "tokenFile": "/etc/drover/token", "relayTo": to,
	})
	if err != nil {
		return nil, err
	}
	file := func(path, content string) map[string]string {
		return map[string]string{"path": path, "content": content, "permissions": "0600"}
	}
	init, err := json.Marshal(map[string]any{ // JSON is YAML
		"write_files": []any{file("/etc/drover/process-server.yaml", string(config)), file("/etc/drover/token", token)},
		"runcmd":      []any{[]string{"systemctl", "enable", "--now", "drover-process-server.service"}},
	})
	return fmt.Appendf(nil, "#cloud-config\n%s\n", init), err
}
