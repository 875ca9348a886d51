package scale

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	sdklog "go.temporal.io/sdk/log"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"drover/activities/control"
	"drover/activities/replication"
	"drover/datapath/ident"
	"drover/datapath/stream"
	"drover/worker/service"
	"drover/workflows"
	"drover/workflows/api"
)

const (
	// asWorker in the environment makes the test binary a worker of the server that it
	// names.
	asWorker = "DROVER_SCALE_WORKER"
	// asProfiled names the file for its CPU profile.
	asProfiled = "DROVER_SCALE_PROFILE"
	server     = "ps-1"
	slots      = 5000 // of activities: each machine's watch takes one
	diskSize   = 1 << 30
)

func TestMain(m *testing.M) {
	if address := os.Getenv(asWorker); address != "" {
		if err := work(address); err != nil {
			fmt.Fprintln(os.Stderr, "worker:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// work is a worker of the control queue and of a process server's.
func work(address string) error {
	log := sdklog.NewStructuredLogger(slog.New(slog.DiscardHandler))
	c, err := client.Dial(client.Options{HostPort: address, Logger: log})
	if err != nil {
		return err
	}
	defer c.Close()
	options := worker.Options{MaxConcurrentActivityExecutionSize: slots, MaxHeartbeatThrottleInterval: service.HeartbeatThrottle,
		DefaultHeartbeatThrottleInterval: service.HeartbeatThrottle,
		MaxConcurrentWorkflowTaskPollers: service.Pollers, MaxConcurrentActivityTaskPollers: service.Pollers}
	queue := worker.New(c, api.ControlQueue, options)
	for _, w := range workflows.All() {
		queue.RegisterWorkflowWithOptions(w.Func, workflow.RegisterOptions{Name: w.Name})
	}
	ctl := control.New(control.Config{Client: c, Agents: func(m ident.MachineID) ([]api.AgentReport, error) {
		return []api.AgentReport{{Machine: m, Instance: "b-" + m.String(), LastSeen: time.Now(),
			Disks: []api.AgentDisk{{BackingUUID: "d", Path: "/dev/sda", Size: diskSize, Protected: true}}}}, nil
	}})
	for name, f := range ctl.Activities() {
		queue.RegisterActivityWithOptions(f, activity.RegisterOptions{Name: name})
	}
	outside(queue)
	options.DisableWorkflowWorker = true
	host := worker.New(c, api.HostQueue(server), options)
	hosted(host)
	if err := queue.Start(); err != nil {
		return err
	}
	defer queue.Stop()
	path := os.Getenv(asProfiled)
	if path == "" {
		return host.Run(worker.InterruptCh())
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err = pprof.StartCPUProfile(f); err == nil {
		err = host.Run(worker.InterruptCh())
		pprof.StopCPUProfile()
	}
	return errors.Join(err, f.Close())
}

func answers[In, Out any](r worker.Registry, name string, f func(In) Out) {
	r.RegisterActivityWithOptions(func(_ context.Context, in In) (Out, error) { return f(in), nil }, activity.RegisterOptions{Name: name})
}

type none struct{}

// outside is what is beside Temporal and the vault.
func outside(r worker.Registry) {
	answers(r, api.ActChooseServer, func(in api.ChooseServerInput) api.Assignment {
		return api.Assignment{Server: server, Role: in.Role, Address: server + ":9443"}
	})
	answers(r, api.ActAssign, func(api.AssignInput) none { return none{} })
	answers(r, api.ActUnassign, func(api.UnassignInput) none { return none{} })
	answers(r, api.ActNotify, func(api.Notification) none { return none{} })
	answers(r, api.ActRemoveReplica, func(api.FenceInput) none { return none{} })
}

// hosted is a process server whose machines have nothing to send. The watch beats like
// the real one.
func hosted(r worker.Registry) {
	var watches atomic.Int64
	answers(r, api.ActGrant, func(api.GrantInput) none { return none{} })
	answers(r, api.ActRevoke, func(api.FenceInput) none { return none{} })
	answers(r, api.ActBase, func(in api.BaseInput) api.Transfer { return api.Transfer{Cause: in.Cause} })
	r.RegisterActivityWithOptions(func(ctx context.Context, in api.ReplicateInput) (api.ReplicateResult, error) {
		watches.Add(1)
		defer watches.Add(-1)
		for {
			activity.RecordHeartbeat(ctx, stream.Status{Machine: in.Machine, Complete: true, ServerTime: time.Now()})
			select {
			case <-ctx.Done():
				return api.ReplicateResult{}, ctx.Err()
			case <-time.After(replication.BeatPause(int(watches.Load()))):
			}
		}
	}, activity.RegisterOptions{Name: api.ActReplicate})
}

// process is a worker in a process of its own.
type process struct {
	cmd  *exec.Cmd
	once sync.Once
	done chan struct{}
}

func startWorker(t *testing.T, address string, number int) *process {
	t.Helper()
	p := &process{cmd: exec.Command(os.Args[0]), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), asWorker+"="+address)
	p.cmd.Stderr = os.Stderr
	if *profiles != "" {
		p.cmd.Env = append(p.cmd.Env, fmt.Sprintf("%s=%s/worker-%d.cpu", asProfiled, *profiles, number))
	}
	require.NoError(t, p.cmd.Start())
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	t.Cleanup(p.stop)
	return p
}

// stop lets it end in order, so that its profile is whole.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		p.kill()
	}
}

// kill ends it like a lost machine does.
func (p *process) kill() {
	p.once.Do(func() { _ = p.cmd.Process.Kill() })
	<-p.done
}

// resident is a process's memory in MiB.
func resident(pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		var kib int
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kib); n == 1 {
			return kib >> 10
		}
	}
	return 0
}
