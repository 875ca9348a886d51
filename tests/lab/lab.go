// Package lab builds a whole small world on one machine: an embedded Temporal
// server, a simulated vCenter with real disk files, the configuration server, a
// process server, a master target and, for every VM that is powered on, its guest
// (the agent and an application that keeps writing). The demo and the end-to-end
// tests drive it through the CLI alone, as an operator would.
package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"drover/tests/azurearm"
	"drover/tests/ports"
)

// Limits of the lab's own waiting.
const (
	startLimit = 60 * time.Second
	pollPause  = 100 * time.Millisecond
)

// VMSpec is a VM of the lab.
type VMSpec struct {
	Name  string
	Disks []DiskSpec
	Tags  []string // in vCenter, "category/name"
}

// DiskSpec is a disk and what its file system is filled with.
type DiskSpec struct {
	Size    int64
	Content string // directory copied into the new ext4
}

// Options of a lab.
type Options struct {
	Dir string // everything the lab makes is in here
	Bin string // where the programs are
	VMs []VMSpec
	// WritePause is the pause between two writes of a guest.
	WritePause time.Duration
	// Azure is the endpoint of an emulated storage account for the seed and the cache, from
	// which machines are made in an Azure of the lab's own; empty: all are directories.
	Azure string
}

// Lab is a running world.
type Lab struct {
	Options

	TemporalAddress, UIAddress string
	Temporal, VSim             *Process
	ConfigServer               *Process
	ProcessServer              *Process
	MasterTarget               *Process
	VCenter                    VCenter

	addresses map[string]string
	sockets   string   // directory for Unix sockets, whose paths must be short
	metrics   sync.Map // of agents: process name -> address
	guests    *guests
	azure     *azurearm.Server // nil: the target is a directory
	stopping  sync.Once
}

// Names in the lab.
const (
	VCenterName       = "vc-1"
	ProcessServerName = "ps-1"
	MasterTargetName  = "mt-1"
	OtherDatastore    = "local-2" // beside that of the VMs
	Network           = "prod"
	Subnet            = "servers"
	TestNetwork       = "sandbox"
)

// New prepares a lab in an empty directory; nothing runs yet.
func New(o Options) (*Lab, error) {
	if o.WritePause == 0 {
		o.WritePause = 250 * time.Millisecond
	}
	for _, dir := range []string{"log", "etc", "secrets", "scripts", "seed", "cache", "retention", "target", "guests"} {
		if err := os.MkdirAll(filepath.Join(o.Dir, dir), 0o700); err != nil {
			return nil, fmt.Errorf("make the lab: %w", err)
		}
	}
	sockets, err := os.MkdirTemp("", "drover-lab-")
	if err != nil {
		return nil, fmt.Errorf("make the lab: %w", err)
	}
	l := &Lab{Options: o, addresses: map[string]string{}, sockets: sockets}
	for _, name := range []string{
		"temporal", "ui", "vcenter", "config-server", "process-server", "master-target",
		"temporal-metrics", "config-server-metrics", "process-server-metrics", "master-target-metrics",
	} {
		address, err := ports.Free()
		if err != nil {
			return nil, err
		}
		l.addresses[name] = address
	}
	l.TemporalAddress, l.UIAddress = l.addresses["temporal"], l.addresses["ui"]
	if err := l.startAzure(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, l.writeConfigs()
}

// Path is a path in the lab's directory.
func (l *Lab) Path(elem ...string) string {
	return filepath.Join(append([]string{l.Dir}, elem...)...)
}

func (l *Lab) bin(name string) string { return filepath.Join(l.Bin, name) }

// Start starts everything but the guests.
func (l *Lab) Start(ctx context.Context) error {
	if err := l.makeContainers(ctx); err != nil {
		return err
	}
	l.Temporal = l.process("temporal", "drover-standalone", "temporal", "--dir", l.Path("temporal"),
		"--listen", l.TemporalAddress, "--ui", l.UIAddress, "--temporal-metrics", l.addresses["temporal-metrics"])
	l.VSim = l.process("vcenter", "drover-vsim", "--listen", l.addresses["vcenter"], "--dir", l.Path("vcenter"), "--spec", l.Path("etc", "vcenter.yaml"))
	l.ConfigServer = l.process("config-server", "drover-config-server", "serve", "--config", l.Path("etc", "config-server.yaml"))
	l.ProcessServer = l.process("process-server", "drover-process-server", "serve", "--config", l.Path("etc", "process-server.yaml"))
	l.MasterTarget = l.process("master-target", "drover-process-server", "serve", "--config", l.Path("etc", "master-target.yaml"))
	if err := errors.Join(l.Temporal.Start(), l.VSim.Start()); err != nil {
		return err
	}
	if err := l.waitPort(ctx, l.Temporal, l.UIAddress); err != nil {
		return err
	}
	if err := l.loadVCenter(ctx); err != nil {
		return err
	}
	if err := l.ConfigServer.Start(); err != nil {
		return err
	}
	if err := l.waitHealthy(ctx, l.ConfigServer, l.addresses["config-server-metrics"]); err != nil {
		return err
	}
	return l.startServers(ctx)
}

// startServers enrols and starts the process server and the master target.
func (l *Lab) startServers(ctx context.Context) error {
	for _, s := range []struct {
		p          *Process
		role, name string
		metrics    string
	}{
		{l.ProcessServer, "process-server", ProcessServerName, "process-server-metrics"},
		{l.MasterTarget, "master-target", MasterTargetName, "master-target-metrics"},
	} {
		if err := l.token(ctx, l.Path("secrets", s.name+".token"), "--role", s.role, "--name", s.name); err != nil {
			return err
		}
		if err := s.p.Start(); err != nil {
			return err
		}
		if err := l.waitHealthy(ctx, s.p, l.addresses[s.metrics]); err != nil {
			return err
		}
	}
	return nil
}

// Close stops everything, guests first.
func (l *Lab) Close() error {
	var err error
	l.stopping.Do(func() {
		if l.guests != nil {
			l.guests.close()
		}
		for _, p := range []*Process{l.MasterTarget, l.ProcessServer, l.ConfigServer, l.VSim, l.Temporal} {
			if p != nil {
				err = errors.Join(err, p.Stop())
			}
		}
		if l.azure != nil {
			l.azure.Close()
		}
		err = errors.Join(err, os.RemoveAll(l.sockets))
	})
	return err
}

func (l *Lab) waitPort(ctx context.Context, p *Process, address string) error {
	return l.waitFor(ctx, p, "accept connections on "+address, func() bool {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			return false
		}
		_ = conn.Close()
		return true
	})
}

func (l *Lab) waitHealthy(ctx context.Context, p *Process, address string) error {
	client := http.Client{Timeout: time.Second}
	return l.waitFor(ctx, p, "be healthy on http://"+address+"/healthz", func() bool {
		resp, err := client.Get("http://" + address + "/healthz")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// Metrics gives where a process serves /metrics.
func (l *Lab) Metrics(process string) string {
	if address, ok := l.metrics.Load(process); ok {
		return address.(string)
	}
	return l.addresses[process+"-metrics"]
}

// WaitHealthy waits until a server that was restarted answers.
func (l *Lab) WaitHealthy(ctx context.Context, p *Process) error {
	return l.waitHealthy(ctx, p, l.addresses[p.Name+"-metrics"])
}

// waitFor waits until the program does what it should, or has ended.
func (l *Lab) waitFor(ctx context.Context, p *Process, what string, ready func() bool) error {
	deadline := time.Now().Add(startLimit)
	for !ready() {
		if ended, err := p.Ended(); ended {
			return fmt.Errorf("%s ended (%w) before it could %s; its log is %s", p.Name, err, what, p.Log)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s did not %s within %s; its log is %s", p.Name, what, startLimit, p.Log)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollPause):
		}
	}
	return nil
}
