package simulate

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"

	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/workflows/api"
)

// vault is that of the simulated machines.
const vault = "simulated"

// world is the model: what the calls change, and what they see.
type world struct {
	mu        sync.Mutex // machines of a group act at the same time
	plan      api.Plan
	machines  []*machine
	runs      int
	options   Options
	calls     []Call
	count     map[Call]int // calls so far, by machine and name
	used      map[int]bool // faults
	broken    []string
	cancelRun func()
}

// machine is a protected machine with both its sides.
type machine struct {
	id       ident.MachineID
	name     string
	vm       api.VM
	status   api.MachineStatus // of its entity, between actions
	acted    int
	sourceOn bool
	lost     bool // the source could not be shut down, and a reason was given
	frozen   bool
	leftover bool              // a target machine or a hold is left, and people are told
	attached bool              // the source's disks, to the master target
	made     map[string]string // instances of VMs that were made anew, by the run that made them
	store    ident.Epoch
	writer   api.Assignment // granted last
	targets  map[string]*target
	holds    map[string][]ident.Seq // by owner
	point    ident.Seq
	failed   string
	kill     func(child string) // cancels a runbook of the machine
}

// target is a machine on the target side, by the run that made it.
type target struct {
	api.TargetMachine
	test bool
}

func startOptions(id string) client.StartWorkflowOptions {
	return client.StartWorkflowOptions{ID: id, TaskQueue: api.ControlQueue}
}

// newWorld has the plan's machines in the state that the run begins with.
func newWorld(o Options) (*world, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	w := &world{plan: o.Plan}
	for _, g := range o.Plan.Groups {
		for _, m := range g.Machines {
			w.machines = append(w.machines, newMachine(m.Name))
		}
	}
	w.begin(Options{})
	for _, m := range w.machines {
		for i, r := range leadingTo(o.Kind) {
			r.RequestID = fmt.Sprintf("before-%d", i)
			if r.action == api.ActionReprotect {
				r.Location = w.location(m)
			}
			if _, err := w.act(m, r.action, r.ActionRequest); err != nil {
				return nil, fmt.Errorf("simulate %s: bring %s to where it begins: %w", o.Kind, m.name, err)
			}
		}
	}
	return w, nil
}

// location is where the plan has the machine's VM made anew; nil: nowhere.
func (w *world) location(m *machine) *api.Location {
	for _, g := range w.plan.Groups {
		for _, in := range g.Machines {
			if in.Name == m.name {
				return in.Location
			}
		}
	}
	return nil
}

// clone is the same world once more, before a run.
func (w *world) clone() *world {
	out := &world{plan: w.plan}
	for _, m := range w.machines {
		c := *m
		c.targets, c.holds, c.made = map[string]*target{}, map[string][]ident.Seq{}, maps.Clone(m.made)
		for run, t := range m.targets {
			made := *t
			c.targets[run] = &made
		}
		for owner, points := range m.holds {
			c.holds[owner] = slices.Clone(points)
		}
		out.machines = append(out.machines, &c)
	}
	return out
}

type actionRequest struct {
	action string
	api.ActionRequest
}

// leadingTo are the actions that come before a kind of run.
func leadingTo(kind api.PlanKind) []actionRequest {
	all := []actionRequest{{api.ActionFailover, api.ActionRequest{Planned: true}}, {action: api.ActionCommit}, {action: api.ActionReprotect}, {action: api.ActionFailback}}
	switch kind {
	case api.PlanCleanup:
		return []actionRequest{{action: api.ActionTestFailover}}
	case api.PlanCommit, api.PlanRollBack:
		return all[:1]
	case api.PlanReprotect, api.PlanReturn:
		return all[:2]
	case api.PlanFailback:
		return all[:3]
	case api.PlanReenable:
		return all
	}
	return nil
}

func newMachine(name string) *machine {
	id := ident.NewMachineID(vault, name)
	const gib = 1 << 30
	m := &machine{id: id, name: name, sourceOn: true, store: 1, point: 1, targets: map[string]*target{}, holds: map[string][]ident.Seq{}, made: map[string]string{}}
	m.vm = api.VM{Machine: id, VCenter: "vc", InstanceUUID: "vm-" + name, BIOSUUID: "bios-" + name, Name: name, CPUs: 2, MemoryMB: 4096, PoweredOn: true,
		Disks: []api.VMDisk{{ID: ident.NewDiskID(id, "disk"), Label: "Hard disk 1", BackingUUID: "disk-" + name, Size: 16 * gib}}}
	policy := api.Policy{Name: "simulated", CutInterval: api.Duration(api.MinCutInterval), Retention: replica.DefaultRetention()}
	m.writer = api.Assignment{Epoch: 1, Server: "ps", Role: ident.RoleProcessServer, Address: "ps:9443", Instance: m.vm.BIOSUUID}
	m.status = api.MachineStatus{
		Machine: id, Name: name, State: api.StateProtected, Health: api.Healthy, VM: m.vm, Policy: policy.Name, PolicySpec: policy,
		TargetSpec: api.Target{Network: "production", TestNetwork: "sandbox"}, Protected: m.vm.Disks, Assignment: m.writer, LastPoint: 1,
	}
	return m
}

// begin forgets the run before.
func (w *world) begin(o Options) {
	w.options, w.calls, w.count, w.used, w.broken = o, nil, map[Call]int{}, map[int]bool{}, nil
}

// unused is a fault that the run never came to, "" when there is none.
func (w *world) unused() string {
	for i, f := range w.options.Faults {
		if !w.used[i] {
			return f.String()
		}
	}
	return ""
}

// called notes a call and says how it ends: before it takes effect, after it, or well.
func (w *world) called(machine, name string, kill func()) (before, after error) {
	key := Call{Machine: machine, Name: name}
	w.count[key]++
	call := Call{machine, name, w.count[key]}
	w.calls = append(w.calls, call)
	if c := w.options.CancelAt; c != nil && *c == call {
		w.cancelRun()
	}
	if c := w.options.KillAt; c != nil && *c == call {
		kill()
	}
	for i, f := range w.options.Faults {
		if f.Call != call || w.used[i] {
			continue
		}
		w.used[i] = true
		err := temporal.NewNonRetryableApplicationError(fmt.Sprintf("simulated fault: %s", f.Call), codeOf(name), nil)
		if f.Lost {
			return nil, err
		}
		return err, nil
	}
	return nil, nil
}

// codeOf is the error's code as the system that is called would give it.
func codeOf(name string) string {
	switch {
	case api.RunsOnHost(name):
		return api.CodeServerLost
	case name == api.ActShutdownVM || name == api.ActPowerOnVM || name == api.ActAttachDisks || name == api.ActDetachDisks || name == api.ActVerifyVMReady ||
		name == api.ActCheckLocation || name == api.ActMakeVM || name == api.ActUnmakeVM:
		return api.CodeVCenter
	case name == api.ActCheckNetwork || name == api.ActCreateMachine || name == api.ActStartMachine || name == api.ActStopMachine ||
		name == api.ActDeleteMachine || name == api.ActCommitMachine || name == api.ActCheckMachine:
		return api.CodeTarget
	}
	return api.CodeActionFailed
}

func (w *world) breaks(m *machine, format string, args ...any) {
	w.broken = append(w.broken, m.name+": "+fmt.Sprintf(format, args...))
}

// production is the target machine that is not a test's, nil when there is none.
func (m *machine) production() *target {
	for _, t := range m.targets {
		if !t.test {
			return t
		}
	}
	return nil
}

func (m *machine) targetUp() bool {
	t := m.production()
	return t != nil && t.Running
}

func (m *machine) runs() string {
	switch {
	case m.sourceOn && m.targetUp():
		return "both"
	case m.sourceOn:
		return "source"
	case m.targetUp():
		return "target"
	}
	return "nowhere"
}

// changed looks after every change whether what must always hold does.
func (w *world) changed(m *machine) {
	if m.sourceOn && m.targetUp() && !m.lost {
		w.breaks(m, "source and target run at the same time")
	}
	if m.sourceOn && m.attached {
		w.breaks(m, "the source runs while its disks are attached to the master target")
	}
}

// remade reports whether the machine's VM is one that was made anew.
func (m *machine) remade() bool {
	for _, instance := range m.made {
		if instance == m.status.VM.InstanceUUID {
			return true
		}
	}
	return false
}

// settled looks between runs whether the world is what the machine's state says.
func (w *world) settled(m *machine) {
	test := m.status.Test != nil && !m.status.Test.Cleaned
	tests, productions, held := 0, 0, 0
	for _, t := range m.targets {
		if t.test {
			tests++
		} else {
			productions++
		}
	}
	for _, points := range m.holds {
		held += len(points)
	}
	reverse := m.status.Assignment.Role == ident.RoleMasterTarget
	source, target, attached, holds := true, 0, false, 0
	switch {
	case m.status.State == api.StateFailedOver:
		source, target, holds = false, 1, 1
	case m.status.State == api.StateCommitted:
		source, target = false, 1
	case m.status.State == api.StateProtectedReverse, m.status.State == api.StateResyncRequired && reverse:
		source, target, attached = false, 1, true
	case m.status.State == api.StateFailedBack:
		target = 1
	case slices.Contains([]api.State{api.StateProtected, api.StateResyncRequired}, m.status.State):
	default:
		w.breaks(m, "it is left in state %s", m.status.State)
		return
	}
	want := func(what string, got, want any) {
		if got != want {
			w.breaks(m, "%s: %v, want %v in state %s", what, got, want, m.status.State)
		}
	}
	if !m.lost {
		want("source runs", m.sourceOn, source)
	}
	if !m.leftover {
		want("machines in the target", productions, target)
	}
	want("the target runs", m.targetUp(), target == 1 && !source)
	want("disks attached to the master target", m.attached, attached)
	want("frozen", m.frozen, false)
	remade := m.remade()
	if !m.leftover {
		want("only the machine's own VM was made anew", len(m.made) == 0 || len(m.made) == 1 && remade, true)
	}
	want("the machine's VM is there", remade || m.status.VM.InstanceUUID == m.vm.InstanceUUID, true)
	// A clean-up or a commit whose answer was lost may have done more than the machine knows:
	// it is asked for again. Less is a leftover.
	most := 0
	if test && m.status.Test.Machine != nil {
		most, holds = 1, holds+1
	}
	if tests > most {
		w.breaks(m, "%d machines of a test are left", tests)
	}
	if held > holds && !m.leftover {
		w.breaks(m, "%d recovery points are held, at most %d should be in state %s", held, holds, m.status.State)
	}
}
