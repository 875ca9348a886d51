package scale

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"

	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/standalone/temporalserver"
	"drover/tests/ports"
	"drover/workflows/api"
)

var (
	machines = flag.Int("machines", 12, "machines")
	workers  = flag.Int("workers", 2, "worker processes, of which one is killed")
	updates  = flag.Int("updates", 12, "machines whose updates are measured")
	database = flag.String("db", "", "where Temporal keeps its data: sqlite or postgres; empty: both, one after the other")
	kill     = flag.Bool("kill", false, "kill a worker and wait until the others have taken its work")
	metrics  = flag.String("metrics", "", "address of Temporal's own /metrics while it is measured")
	profiles = flag.String("profiles", "", "directory for CPU profiles of the workers; the server's is -cpuprofile's")
)

const (
	atOnce = 16               // requests under way
	beat   = 20 * time.Second // heartbeat timeout of a watch: workflows/call
	// notice is what a moved watch may take beyond the heartbeat timeout on a busy
	// machine before something must be wrong.
	notice   = time.Minute
	patience = 30 * time.Minute
)

// site is a server with clients and machines.
type site struct {
	*testing.T
	address string
	client  client.Client
	vms     []api.VM
}

// start runs the server, stops it and runs it again on what it has kept.
func start(t *testing.T, database string) *site {
	t.Helper()
	options := temporalserver.Options{Dir: t.TempDir(), Namespace: "default", Logger: slog.New(slog.DiscardHandler),
		Metrics: *metrics, SearchAttributes: map[string]enumspb.IndexedValueType{}}
	for _, a := range api.SearchAttributes() {
		options.SearchAttributes[a.Name] = enumspb.INDEXED_VALUE_TYPE_KEYWORD
		if a.List {
			options.SearchAttributes[a.Name] = enumspb.INDEXED_VALUE_TYPE_KEYWORD_LIST
		}
	}
	if database == "postgres" {
		options.Postgres = startPostgres(t)
	}
	var err error
	options.Listen, err = ports.Free()
	require.NoError(t, err)
	for _, which := range []string{"first", "again"} {
		began := time.Now()
		s, err := temporalserver.Start(t.Context(), options)
		require.NoError(t, err)
		line("Temporal on "+database+" answers after, "+which, time.Since(began))
		if which == "first" {
			require.NoError(t, s.Stop())
			continue
		}
		t.Cleanup(func() { require.NoError(t, s.Stop()) })
	}
	c, err := client.Dial(client.Options{HostPort: options.Listen, Logger: options.Logger})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	out := &site{T: t, address: options.Listen, client: c}
	for i := range *machines {
		name := fmt.Sprintf("vm-%04d", i)
		m := ident.NewMachineID("vc", name)
		out.vms = append(out.vms, api.VM{Machine: m, VCenter: "vc-1", InstanceUUID: name, BIOSUUID: "b-" + m.String(), Name: name,
			Disks: []api.VMDisk{{ID: ident.NewDiskID(m, "d"), BackingUUID: "d", Label: "Hard disk 1", Size: diskSize}}})
	}
	return out
}

// line is one of the table that is measured.
func line(what string, value any) {
	if d, ok := value.(time.Duration); ok {
		value = d.Round(time.Millisecond)
	}
	fmt.Printf("| %-55s | %12v |\n", what, value)
}

// each does f for all machines, some at once.
func (s *site) each(vms []api.VM, f func(api.VM) error) {
	s.Helper()
	var group sync.WaitGroup
	errs, turn := make([]error, len(vms)), make(chan struct{}, atOnce)
	for i, vm := range vms {
		turn <- struct{}{}
		group.Go(func() {
			defer func() { <-turn }()
			errs[i] = f(vm)
		})
	}
	group.Wait()
	for i, err := range errs {
		require.NoError(s, err, vms[i].Name)
	}
}

func policy() api.Policy {
	return api.Policy{Name: "gold", CutInterval: api.Duration(30 * time.Second), Retention: replica.DefaultRetention()}
}

func (s *site) protect(vm api.VM) error {
	_, err := s.client.ExecuteWorkflow(s.Context(), client.StartWorkflowOptions{
		ID: api.MachineWorkflowID(vm.Machine), TaskQueue: api.ControlQueue, WorkflowTaskTimeout: time.Minute,
	}, api.WorkflowMachine, api.MachineInput{VM: vm, Policy: policy(), PolicyHash: "1", Site: "s", Target: api.Target{Network: "prod", TestNetwork: "sandbox"}})
	return err
}

// protected waits until the UI's filter finds all machines protected, and shows when a
// quarter, half and all of them were: starting more must not make each one slower.
func (s *site) protected(began time.Time) {
	s.Helper()
	query := fmt.Sprintf("WorkflowType = '%s' AND %s = '%s'", api.WorkflowMachine, api.SearchState, api.StateProtected)
	quarter := 1
	for end := time.Now().Add(patience); ; time.Sleep(time.Second) {
		r, err := s.client.CountWorkflow(s.Context(), &workflowservice.CountWorkflowExecutionsRequest{Query: query})
		for ; err == nil && int(r.GetCount())*4 >= quarter*len(s.vms); quarter++ {
			line(fmt.Sprintf("%d are protected after", quarter*len(s.vms)/4), time.Since(began))
			if quarter == 4 {
				return
			}
		}
		require.True(s, time.Now().Before(end), "%v of %d are protected: %v", r.GetCount(), len(s.vms), err)
	}
}

// watches gives, for each machine, when its watch was begun.
func (s *site) watches() map[string]time.Time {
	out, mu := map[string]time.Time{}, sync.Mutex{}
	s.each(s.vms, func(vm api.VM) error {
		d, err := s.client.DescribeWorkflowExecution(s.Context(), api.MachineWorkflowID(vm.Machine), "")
		if err != nil {
			return err
		}
		for _, a := range d.GetPendingActivities() {
			if a.GetActivityType().GetName() == api.ActReplicate && a.GetState() == enumspb.PENDING_ACTIVITY_STATE_STARTED {
				mu.Lock()
				out[vm.Name] = a.GetLastStartedTime().AsTime()
				mu.Unlock()
			}
		}
		return nil
	})
	return out
}

// latency does f for some machines, one after the other, and shows how long it takes.
func (s *site) latency(what string, f func(ctx context.Context, vm api.VM) error) {
	s.Helper()
	var took []time.Duration
	for i := range min(*updates, len(s.vms)) {
		vm := s.vms[i*len(s.vms)/min(*updates, len(s.vms))]
		began := time.Now()
		require.NoError(s, f(s.Context(), vm))
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	line(what+", p50", took[len(took)/2])
	line(what+", p95", took[len(took)*95/100])
	line(what+", worst", took[len(took)-1])
}

func (s *site) update(ctx context.Context, vm api.VM, action string, r api.ActionRequest) error {
	h, err := s.client.UpdateWorkflow(ctx, client.UpdateWorkflowOptions{WorkflowID: api.MachineWorkflowID(vm.Machine), UpdateName: action,
		Args: []any{r}, WaitForStage: client.WorkflowUpdateStageCompleted})
	if err != nil {
		return err
	}
	return h.Get(ctx, nil)
}

// killed ends a worker, and waits until the watches of all machines run on the others.
func (s *site) killed(p *process) {
	s.Helper()
	before := s.watches()
	require.Len(s, before, len(s.vms))
	at := time.Now()
	p.kill()
	for end := at.Add(beat + notice); ; time.Sleep(time.Second) {
		moved, longest := 0, time.Duration(0)
		now := s.watches()
		for _, began := range now {
			if began.After(at) {
				moved++
				longest = max(longest, began.Sub(at))
			}
		}
		// A watch on the lost worker is not begun anew before its heartbeat has timed out.
		if time.Since(at) > beat && len(now) == len(s.vms) {
			line("watches that were on the killed worker", moved)
			line("the last of them goes on after (heartbeat timeout 20 s)", longest)
			require.Positive(s, moved, "the worker that was killed had some")
			return
		}
		require.True(s, time.Now().Before(end), "%d of %d machines are watched %s after the worker was killed", len(now), len(s.vms), time.Since(at))
	}
}

// longest is the longest history of the machines that are measured.
func (s *site) longest() (events int64) {
	for _, vm := range s.vms[:min(*updates, len(s.vms))] {
		d, err := s.client.DescribeWorkflowExecution(s.Context(), api.MachineWorkflowID(vm.Machine), "")
		require.NoError(s, err)
		events = max(events, d.GetWorkflowExecutionInfo().GetHistoryLength())
	}
	return events
}

// TestScale: all machines are protected, asked, and go on when a worker is lost.
func TestScale(t *testing.T) {
	for _, store := range []string{"sqlite", "postgres"} {
		if *database == "" || *database == store {
			t.Run(store, func(t *testing.T) { play(t, start(t, store)) })
		}
	}
}

func play(t *testing.T, s *site) {
	var all []*process
	for i := range *workers {
		all = append(all, startWorker(t, s.address, i+1))
	}
	line("machines", len(s.vms))
	line("worker processes", len(all))
	began := time.Now()
	s.each(s.vms, s.protect)
	line("all are asked for after", time.Since(began))
	s.protected(began)
	require.Eventually(t, func() bool { return len(s.watches()) == len(s.vms) }, patience, time.Second)

	silver := policy()
	silver.Name = "silver"
	s.latency("update that is refused", func(ctx context.Context, vm api.VM) error {
		if err := s.update(ctx, vm, api.ActionCommit, api.ActionRequest{}); err == nil || !strings.Contains(err.Error(), "possible now") {
			return fmt.Errorf("commit of a protected machine: %w", err)
		}
		return nil
	})
	s.latency("set-policy, to its end", func(ctx context.Context, vm api.VM) error {
		return s.update(ctx, vm, api.ActionSetPolicy, api.ActionRequest{Policy: &silver, PolicyHash: "2"})
	})
	s.latency("resync, to its end", func(ctx context.Context, vm api.VM) error {
		return s.update(ctx, vm, api.ActionResync, api.ActionRequest{})
	})
	s.latency("query", func(ctx context.Context, vm api.VM) error {
		_, err := s.client.QueryWorkflow(ctx, api.MachineWorkflowID(vm.Machine), "", api.QueryStatus)
		return err
	})
	line("memory of Temporal and this test, MiB", resident(os.Getpid()))
	for i, p := range all {
		line(fmt.Sprintf("memory of worker %d, MiB", i+1), resident(p.cmd.Process.Pid))
	}
	line("longest history, events", s.longest())
	require.Eventually(t, func() bool { return len(s.watches()) == len(s.vms) }, patience, time.Second)
	if *kill && len(all) > 1 {
		s.killed(all[0])
		require.NoError(t, s.update(t.Context(), s.vms[0], api.ActionSetPolicy, api.ActionRequest{Policy: &silver, PolicyHash: "3"}), "machines can be asked")
	}
}
