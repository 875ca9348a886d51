package simulate

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"go.temporal.io/sdk/activity"

	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/stream"
	"drover/workflows/api"
	"drover/workflows/fault"
)

// planCalls are those of a run itself.
func (w *world) planCalls(r Registry) {
	reg := func(name string, f any) { r.RegisterActivityWithOptions(f, activity.RegisterOptions{Name: name}) }
	reg(api.ActLookupPlan, func(string) (api.Plan, error) { return w.plan, nil })
	reg(api.ActFindMachine, func(name string) (api.VaultMember, error) {
		m := w.named(name)
		return api.VaultMember{Machine: m.id, Name: m.name, Policy: m.status.Policy}, nil
	})
	reg(api.ActCheckActions, func([]api.LocatedAction) ([]api.FieldError, error) { return nil, nil })
	reg(api.ActNotify, func(api.Notification) error { return nil })
	reg(api.ActScript, func(in api.ScriptInput) (api.ActionOutput, error) { return w.action(in.Step) })
	reg(api.ActWebhook, func(in api.WebhookInput) (api.ActionOutput, error) { return w.action(in.Step) })
	reg(api.ActRunbook, func(in api.RunbookInput) (api.ActionOutput, error) { return w.action(in.Step) })
	reg(api.ActMachineAction, func(in api.MachineActionInput) (api.ActionResult, error) {
		return w.act(w.byID(in.Machine), in.Action, in.Request)
	})
	reg(api.ActDoneBefore, func(in api.MachineActionInput) (api.DoneBefore, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.byID(in.Machine).status.DoneBefore(in.Action), nil
	})
	reg(api.ActChooseCommon, func(in api.ChooseCommonInput) (out []api.CommonPoint, _ error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, id := range in.Machines {
			m := w.byID(id)
			m.holds[in.Owner] = append(m.holds[in.Owner], m.point)
			out = append(out, api.CommonPoint{Machine: id, Point: m.point, Round: 1})
		}
		return out, nil
	})
	reg(api.ActReleasePoint, func(in api.ReleasePointInput) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.byID(in.Machine).release(in)
		return nil
	})
}

func (w *world) named(name string) *machine {
	return w.machines[slices.IndexFunc(w.machines, func(m *machine) bool { return m.name == name })]
}

func (w *world) byID(id ident.MachineID) *machine {
	return w.machines[slices.IndexFunc(w.machines, func(m *machine) bool { return m.id == id })]
}

// action is a script, webhook or runbook of the plan: all it does here is to be counted.
func (w *world) action(step string) (api.ActionOutput, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before, after := w.called("", step, func() {})
	if before == nil {
		before = after
	}
	return api.ActionOutput{Output: "simulated"}, before
}

// machineCalls are those of a machine's entity and its runbooks.
func (w *world) machineCalls(r Registry, m *machine, now func() time.Time) {
	w.replicationCalls(r, m, now)
	w.pointCalls(r, m, now)
	w.sourceCalls(r, m)
	w.remadeCalls(r, m)
	w.targetCalls(r, m)
	nothing := func(any) (none, error) { return none{}, nil }
	for _, name := range []string{api.ActVaultJoin, api.ActVaultLeave, api.ActNotify, api.ActAssign, api.ActUnassign, api.ActRemoveReplica} {
		serve(w, r, m, name, nothing)
	}
	serve(w, r, m, api.ActAwaitAgent, func(in api.AwaitAgentInput) (api.AgentInfo, error) {
		out := api.AgentInfo{Instance: in.Instance}
		if r := in.Reach; r != nil {
			out.Report = &api.AgentReport{Reached: &api.AgentReached{Address: r.Address, Via: r.Via}}
		}
		return out, nil
	})
	r.RegisterActivityWithOptions(func() (api.VaultStatus, error) { return api.VaultStatus{}, nil }, activity.RegisterOptions{Name: api.ActVaultStatus})
}

func (w *world) replicationCalls(r Registry, m *machine, now func() time.Time) {
	serve(w, r, m, api.ActChooseServer, func(in api.ChooseServerInput) (api.Assignment, error) {
		name := "ps"
		if in.Role == ident.RoleMasterTarget {
			name = "mt"
		}
		return api.Assignment{Server: name, Role: in.Role, Address: name + ":9443", Epoch: m.store}, nil
	})
	serve(w, r, m, api.ActGrant, func(in api.GrantInput) (none, error) {
		if in.Assignment.Epoch < m.store {
			return none{}, fault.New(api.CodeFenced, "epoch %d is old, the store is at %d", in.Assignment.Epoch, m.store)
		}
		m.store, m.writer = in.Assignment.Epoch, in.Assignment
		return none{}, nil
	})
	serve(w, r, m, api.ActRevoke, func(api.FenceInput) (none, error) { m.frozen = false; return none{}, nil })
	serve(w, r, m, api.ActFence, func(in api.FenceInput) (none, error) {
		if in.Epoch < m.store {
			return none{}, fault.New(api.CodeFenced, "epoch %d is old, the store is at %d", in.Epoch, m.store)
		}
		m.store = in.Epoch
		return none{}, nil
	})
	serve(w, r, m, api.ActBase, func(in api.BaseInput) (api.Transfer, error) {
		m.point++
		return api.Transfer{DiskBytes: m.vm.Disks[0].Size, Cause: in.Cause}, nil
	})
	serve(w, r, m, api.ActFinalCut, func(api.FenceInput) (replica.Point, error) {
		m.frozen, m.point = true, m.point+1
		return m.newest(now()), nil
	})
	serve(w, r, m, api.ActRelease, func(api.FenceInput) (none, error) { m.frozen = false; return none{}, nil })
	serve(w, r, m, api.ActVerify, func(in api.VerifyInput) (stream.SignedRecord, error) {
		record, err := json.Marshal(stream.Record{Machine: in.Machine, Name: in.Name, Verdict: stream.VerdictEqual})
		return stream.SignedRecord{Record: record}, err
	})
	// It is left pending: the environment's clock stands while a call is under way.
	r.RegisterActivityWithOptions(func(context.Context, api.ReplicateInput) (api.ReplicateResult, error) {
		return api.ReplicateResult{}, activity.ErrResultPending
	}, activity.RegisterOptions{Name: api.ActReplicate})
}

func (w *world) pointCalls(r Registry, m *machine, now func() time.Time) {
	serve(w, r, m, api.ActChoosePoint, func(in api.ChoosePointInput) (replica.Point, error) {
		p := m.newest(now())
		if in.Choice == api.PointCustom {
			p.ID, p.Position.Seq = in.PointID, in.PointID
		}
		if !slices.Contains(m.holds[in.Owner], p.ID) {
			m.holds[in.Owner] = append(m.holds[in.Owner], p.ID)
		}
		return p, nil
	})
	serve(w, r, m, api.ActReleasePoint, func(in api.ReleasePointInput) (none, error) { m.release(in); return none{}, nil })
}

func (m *machine) release(in api.ReleasePointInput) {
	m.holds[in.Owner] = slices.DeleteFunc(m.holds[in.Owner], func(p ident.Seq) bool { return p == in.Point || in.Point == 0 })
}

// newest is the newest recovery point; its time is of the machine's last cut.
func (m *machine) newest(now time.Time) replica.Point {
	return replica.Point{ID: m.point, Time: now, Position: ident.Position{Epoch: m.writer.Epoch, Seq: m.point}}
}

func (w *world) sourceCalls(r Registry, m *machine) {
	serve(w, r, m, api.ActShutdownVM, func(api.ShutdownInput) (api.ShutdownResult, error) {
		was := m.sourceOn
		m.sourceOn, m.frozen = false, false
		return api.ShutdownResult{WasOn: was, How: "simulated"}, nil
	})
	serve(w, r, m, api.ActPowerOnVM, func(api.VMRef) (none, error) { m.sourceOn = true; return none{}, nil })
	serve(w, r, m, api.ActVerifyVMReady, func(in api.VMRef) (api.VM, error) {
		vm := m.vm
		if in.InstanceUUID != vm.InstanceUUID {
			vm = madeAnew(vm, in.InstanceUUID, in.VCenter)
		}
		return vm, nil
	})
	serve(w, r, m, api.ActAttachDisks, func(api.AttachInput) (none, error) { m.attached = true; return none{}, nil })
	serve(w, r, m, api.ActDetachDisks, func(api.AttachInput) (none, error) { m.attached = false; return none{}, nil })
}

// remadeCalls are those of a VM that is made anew. It is the source from then on.
func (w *world) remadeCalls(r Registry, m *machine) {
	serve(w, r, m, api.ActCheckLocation, func(api.MakeVMInput) (none, error) { return none{}, nil })
	serve(w, r, m, api.ActMakeVM, func(in api.MakeVMInput) (api.MadeVM, error) {
		instance := "made-" + in.Run
		m.made[in.Run] = instance
		vm := in.VM
		vm.Disks = in.Disks
		vm = madeAnew(vm, instance, in.VCenter())
		return api.MadeVM{VM: vm, Disks: vm.Disks}, nil
	})
	serve(w, r, m, api.ActUnmakeVM, func(in api.UnmakeVMInput) (none, error) {
		if m.attached && m.made[in.Run] != "" {
			w.breaks(m, "a VM is deleted while its disks are attached to the master target")
		}
		delete(m.made, in.Run)
		return none{}, nil
	})
}

// madeAnew is the VM with other uuids.
func madeAnew(vm api.VM, instance, vcenter string) api.VM {
	vm.InstanceUUID, vm.BIOSUUID, vm.VCenter, vm.PoweredOn = instance, "bios-"+instance, vcenter, false
	vm.Disks = slices.Clone(vm.Disks)
	for i := range vm.Disks {
		vm.Disks[i].BackingUUID = fmt.Sprintf("%s-disk-%d", instance, i)
	}
	return vm
}

func (w *world) targetCalls(r Registry, m *machine) {
	serve(w, r, m, api.ActCheckNetwork, func(api.CheckNetworkInput) (none, error) { return none{}, nil })
	serve(w, r, m, api.ActCreateMachine, func(in api.CreateMachineInput) (api.TargetMachine, error) {
		t := m.targets[in.Run]
		if t == nil {
			t = &target{test: in.Test, TargetMachine: api.TargetMachine{Name: in.Name, Instance: "cloud-" + in.Run, Network: in.Network,
				Disks: []api.TargetDisk{{ID: in.Disks[0].ID, BackingUUID: "cloud-disk"}}, Tags: map[string]string{"drover-run": in.Run}}}
			m.targets[in.Run] = t
		}
		return t.TargetMachine, nil
	})
	serve(w, r, m, api.ActStartMachine, func(in api.TargetRef) (api.TargetMachine, error) {
		return w.start(m, in)
	})
	serve(w, r, m, api.ActCheckMachine, func(api.TargetRef) (api.CheckResult, error) { return api.CheckResult{Ready: true}, nil })
	serve(w, r, m, api.ActStopMachine, func(in api.TargetRef) (none, error) {
		if t := m.targets[in.Run]; t != nil {
			t.Running = false
		}
		m.frozen = false
		return none{}, nil
	})
	serve(w, r, m, api.ActDeleteMachine, func(in api.TargetRef) (none, error) { delete(m.targets, in.Run); return none{}, nil })
	serve(w, r, m, api.ActCommitMachine, func(api.TargetRef) (none, error) { return none{}, nil })
}

// start starts a target machine. By then the store refuses its source.
func (w *world) start(m *machine, in api.TargetRef) (api.TargetMachine, error) {
	t := m.targets[in.Run]
	if t == nil {
		return api.TargetMachine{}, fault.New(api.CodeNotFound, "there is no machine %s of run %s", in.Name, in.Run)
	}
	if !t.test && m.writer.Role == ident.RoleProcessServer && m.store <= m.writer.Epoch {
		w.breaks(m, "the target was started before the epoch was raised in the store: its source could still write")
	}
	t.Running = true
	return t.TargetMachine, nil
}
