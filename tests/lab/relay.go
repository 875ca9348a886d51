package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"drover/tests/azurearm"
)

const machineType = "Microsoft.Compute/virtualMachines"

// relay is a running temporary process server of the target: the program that is in its
// image, with the files that it was given for its first boot.
type relay struct {
	firstBoot string
	process   *Process
}

// relays runs the temporary process servers that are powered on. One that ends is not
// started again: that is for tests to do, where systemd would.
func (g *guests) relays() error {
	if g.lab.azure == nil {
		return nil
	}
	want := ""
	for _, vm := range g.lab.azure.Machines() {
		if boots := g.lab.azure.CustomData(azurearm.ID(azureGroup, machineType, vm.Name)); vm.Running && len(boots) > 0 {
			want = boots[len(boots)-1]
		}
	}
	if g.relay != nil && g.relay.firstBoot != want {
		g.relay.process.Kill()
		g.relay = nil
	}
	if g.relay != nil || want == "" {
		return nil
	}
	p, err := g.lab.bootRelay(want)
	if err != nil {
		return fmt.Errorf("boot the temporary process server: %w", err)
	}
	g.relay = &relay{want, p}
	return nil
}

// bootRelay does what cloud-init does in the machine, in a directory of its own, and at
// its address alone: here it shares the ports of the host with all others.
func (l *Lab) bootRelay(firstBoot string) (*Process, error) {
	var boot struct {
		Files []struct{ Path, Content string } `json:"write_files"`
	}
	if err := json.Unmarshal([]byte(strings.TrimPrefix(firstBoot, "#cloud-config\n")), &boot); err != nil {
		return nil, err
	}
	var config map[string]any
	for _, f := range boot.Files {
		if path.Base(f.Path) == "process-server.yaml" {
			if err := json.Unmarshal([]byte(f.Content), &config); err != nil {
				return nil, err
			}
		}
	}
	name, _ := config["name"].(string)
	dir := l.Path("guests", name)
	config["state"], config["tokenFile"], config["listen"] = filepath.Join(dir, "state"), filepath.Join(dir, "token"), config["advertise"]
	text, err := json.Marshal(config)
	if err = errors.Join(err, os.MkdirAll(dir, 0o700)); err != nil {
		return nil, err
	}
	for _, f := range boot.Files {
		content := f.Content
		if path.Base(f.Path) == "process-server.yaml" {
			content = string(text)
		}
		if err := os.WriteFile(filepath.Join(dir, path.Base(f.Path)), []byte(content), 0o600); err != nil {
			return nil, err
		}
	}
	p := l.process("relay", "drover-process-server", "serve", "--config", filepath.Join(dir, "process-server.yaml"))
	return p, p.Start()
}

// Relay gives the temporary process server of the target; nil when there is none.
func (l *Lab) Relay() *Process {
	l.guests.mu.Lock()
	defer l.guests.mu.Unlock()
	if l.guests.relay == nil {
		return nil
	}
	return l.guests.relay.process
}

// WaitNoRelay waits until there is none any more.
func (l *Lab) WaitNoRelay(ctx context.Context) error {
	for deadline := time.Now().Add(startLimit); l.Relay() != nil; {
		if time.Now().After(deadline) {
			return errors.New("the temporary process server is still there")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollPause):
		}
	}
	return nil
}
