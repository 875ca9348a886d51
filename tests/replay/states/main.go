// Command states records histories of what a demo does not come to: runs of plans that stop,
// are tried again, skipped, paused, cancelled and rolled back, timers, other recovery points.
// It plays them on a real Temporal server, against the simulator's model.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"drover/starter/simulate"
	"drover/tests/ports"
	"drover/tests/replay"
	"drover/workflows"
	"drover/workflows/api"
)

const (
	startLimit = time.Minute
	playLimit  = 5 * time.Minute
	pause      = 50 * time.Millisecond
)

func main() {
	bin := flag.String("bin", "build/bin", "directory of drover-standalone")
	out := flag.String("out", "tests/replay/testdata/states", "directory of the histories")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := record(ctx, *bin, *out)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "states:", err)
		os.Exit(1)
	}
}

// record runs a server, plays, and writes what it has seen.
func record(ctx context.Context, bin, out string) (err error) {
	dir, err := os.MkdirTemp("", "drover-states-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	address, err := ports.Free()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, playLimit)
	defer cancel()
	server := exec.CommandContext(ctx, filepath.Join(bin, "drover-standalone"), "temporal", "--dir", dir, "--listen", address, "--ui", "")
	server.Cancel = func() error { return server.Process.Signal(syscall.SIGTERM) }
	server.WaitDelay = startLimit
	if err := server.Start(); err != nil {
		return err
	}
	defer func() { cancel(); _ = server.Wait() }()
	p, err := newPlayer(ctx, address)
	if err != nil {
		return err
	}
	defer p.stop()
	if err := p.play(ctx); err != nil {
		return err
	}
	return replay.Record(ctx, address, out)
}

// player is a client with workers of all queues.
type player struct {
	client.Client
	model   *simulate.Model
	machine api.MachineInput
	workers []worker.Worker
	runs    int
	acts    int
	looks   atomic.Int32 // of resync windows
}

func plan() api.Plan {
	return api.Plan{
		Name: "states", Before: []api.PlanAction{{Name: "announce", Script: &api.ScriptAction{File: "announce.sh"}}},
		Groups: []api.PlanGroup{{Name: "db", Machines: []api.PlanMachine{{Name: "db-1"}},
			After: []api.PlanAction{{Name: "checked", Manual: &api.ManualAction{Instructions: "look", Approvers: []string{"anna"}}, On: []api.PlanKind{api.PlanPlanned}}}}},
		After: []api.PlanAction{{Name: "tell", Webhook: &api.WebhookAction{URL: "https://hooks/"}}},
	}
}

func newPlayer(ctx context.Context, address string) (*player, error) {
	c, err := dial(ctx, address)
	if err != nil {
		return nil, err
	}
	model, err := simulate.NewModel(plan())
	if err != nil {
		return nil, err
	}
	p := &player{Client: c, model: model, machine: model.Input()}
	for _, queue := range []string{api.ControlQueue, api.HostQueue("ps"), api.HostQueue("mt")} {
		w := worker.New(c, queue, worker.Options{MaxHeartbeatThrottleInterval: time.Second})
		for _, named := range workflows.All() {
			w.RegisterWorkflowWithOptions(named.Func, workflow.RegisterOptions{Name: named.Name})
		}
		model.Register(w, p.act, p.status)
		p.answer(w)
		if err := w.Start(); err != nil {
			return nil, err
		}
		p.workers = append(p.workers, w)
	}
	_, err = c.ExecuteWorkflow(ctx, client.StartWorkflowOptions{ID: p.id(), TaskQueue: api.ControlQueue}, api.WorkflowMachine, p.machine)
	return p, err
}

func dial(ctx context.Context, address string) (client.Client, error) {
	until := time.Now().Add(startLimit)
	for {
		c, err := client.Dial(client.Options{HostPort: address, Logger: log.NewStructuredLogger(slog.New(slog.DiscardHandler))})
		if err == nil { // the namespace and its search attributes come a moment later
			query := api.SearchState + " = 'Protected'"
			if _, err = c.CountWorkflow(ctx, &workflowservice.CountWorkflowExecutionsRequest{Namespace: client.DefaultNamespace, Query: query}); err == nil {
				return c, nil
			}
			c.Close()
		}
		if time.Now().After(until) || ctx.Err() != nil {
			return nil, err
		}
		time.Sleep(pause)
	}
}

func (p *player) stop() {
	for _, w := range p.workers {
		w.Stop()
	}
	p.Close()
}

func (p *player) id() string { return api.MachineWorkflowID(p.machine.VM.Machine) }

// act runs an action of the machine, for a plan.
func (p *player) act(ctx context.Context, in api.MachineActionInput) (out api.ActionResult, err error) {
	h, err := p.UpdateWorkflow(ctx, client.UpdateWorkflowOptions{
		UpdateID: in.Request.RequestID, WorkflowID: p.id(), UpdateName: in.Action, Args: []any{in.Request}, WaitForStage: client.WorkflowUpdateStageCompleted,
	})
	if err == nil {
		err = h.Get(ctx, &out)
	}
	return out, err
}

func (p *player) status(ctx context.Context) (s api.MachineStatus, err error) {
	v, err := p.QueryWorkflow(ctx, p.id(), "", api.QueryStatus)
	if err == nil {
		err = v.Get(&s)
	}
	return s, err
}
