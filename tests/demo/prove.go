package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"go.temporal.io/sdk/client"

	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/tests/lab"
	"drover/workflows/api"
)

// azurePoints is how many of the newest points are read back from a storage account, where
// all would be read: at a page blob's pace that takes minutes.
const azurePoints = 5

// prove compares recovery points with what the machine's guest noted at each.
func (d *demo) prove(ctx context.Context, store string, m *MachineReport, what string, newest int) error {
	if d.Azure != "" && newest == 0 {
		newest = azurePoints
	}
	proof, err := d.ProvePoints(ctx, store, d.vms[m.Name].Machine, m.Name, newest)
	if err != nil {
		return err
	}
	m.Proofs[what] = proof
	d.say("%s: %d of %d recovery points equal what the guest had, on every disk (%s read back)", m.Name, proof.Matched, proof.Points, bytes(proof.Bytes))
	if !proof.OK() {
		return fmt.Errorf("%s: recovery points are not proven: %s", what, strings.Join(proof.Problems, "; "))
	}
	return nil
}

// booted checks what a recovered machine found on its disks when it was started:
// what its guest had at the recovery point, in clean file systems.
func (d *demo) booted(ctx context.Context, m *MachineReport, r api.ActionResult, what string, since time.Time) error {
	if r.Point == nil {
		return fmt.Errorf("%s: no recovery point in the result", what)
	}
	instance := d.vms[m.Name].BIOSUUID
	if what != "failback" {
		if r.Target == nil {
			return fmt.Errorf("%s: no machine in the result", what)
		}
		instance = r.Target.Instance
	}
	boot, err := d.WaitBoot(ctx, m.Name, instance, since)
	if err != nil {
		return err
	}
	noted, err := d.NotedAt(m.Name, r.Point.Position)
	if err != nil {
		return err
	}
	for _, disk := range d.vms[m.Name].Disks {
		id := disk.ID.String()
		equal := boot.Disks[id] != "" && boot.Disks[id] == noted.Disks[id]
		m.check(what+": "+disk.Label+" is what the guest had at point "+fmt.Sprint(r.Point.ID), equal, "sha256 "+short(boot.Disks[id]))
		m.check(what+": e2fsck -fn of "+disk.Label, len(boot.Problems) == 0 && boot.FSCheck[id] != "", boot.FSCheck[id])
		if !equal || len(boot.Problems) > 0 {
			return fmt.Errorf("%s: %s is not what the guest had at point %d (%s)", what, disk.Label, r.Point.ID, strings.Join(boot.Problems, "; "))
		}
		d.say("%s, %s: sha256 %s as noted at the cut; e2fsck: %s", m.Name, disk.Label, short(boot.Disks[id]), boot.FSCheck[id])
	}
	return nil
}

// clean checks that test machines are there, or are not.
func (d *demo) clean(_ context.Context, there bool) error {
	all, err := d.TargetMachines()
	if err != nil {
		return err
	}
	tests := 0
	for _, machine := range all {
		if machine.Test {
			tests++
		}
	}
	d.say("%d test machines in the target", tests)
	if there != (tests == len(names)) || !there && tests != 0 {
		return fmt.Errorf("%d test machines in the target", tests)
	}
	return nil
}

// plan runs the recovery plan and shows its steps. At a manual step it shows how a
// person would go on, then sends that signal itself.
func (d *demo) plan(ctx context.Context, kind string) (lab.PlanRun, error) {
	fmt.Printf("      $ drover plan run %s --%s\n", planName, kind)
	run, err := d.RunPlan(ctx, planName, kind, planLimit, func(s api.PlanStep) {
		fmt.Printf("        %-8s %-32s %s\n", s.State, s.ID, firstLine(s.Message))
	}, func(run string, s api.PlanStep) error { return d.approve(ctx, run, s) })
	if err != nil {
		return run, err
	}
	if len(run.Results()) != len(names) {
		return run, fmt.Errorf("plan %s, %s: results of %d machines, want %d", planName, kind, len(run.Results()), len(names))
	}
	d.say("plan run %s is %s", run.Run, run.State)
	return run, nil
}

func (d *demo) approve(ctx context.Context, run string, s api.PlanStep) error {
	fmt.Printf(`        The plan waits for a person: %s
        A person goes on with one of
          drover plan approve %s
          temporal workflow signal --workflow-id %s --name approve --input '{"by":"anna"}'
          http://%s/namespaces/default/workflows/%s  ->  Send a Signal: approve
        Now the demo sends that signal.
`, s.Message, run, run, d.UIAddress, run)
	c, err := client.Dial(client.Options{HostPort: d.TemporalAddress, Logger: quiet{}})
	if err != nil {
		return err
	}
	defer c.Close()
	return c.SignalWorkflow(ctx, run, "", api.PlanApprove, api.StepDecision{By: "demo", Note: "checked"})
}

// quiet keeps the SDK's log out of the demo.
type quiet struct{}

func (quiet) Debug(string, ...any) {}
func (quiet) Info(string, ...any)  {}
func (quiet) Warn(string, ...any)  {}
func (quiet) Error(string, ...any) {}

// contains reports whether all of the points are still there.
func contains(have, want []replica.Point) bool {
	ids := map[ident.Seq]bool{}
	for _, p := range have {
		ids[p.ID] = true
	}
	for _, p := range want {
		if !ids[p.ID] {
			return false
		}
	}
	return len(want) > 0
}

func (m *MachineReport) check(what string, ok bool, note string) {
	m.Checks = append(m.Checks, Check{What: what, OK: ok, Note: note})
}

func short(digest string) string {
	const shown = 12
	if len(digest) < shown {
		return digest
	}
	return digest[:shown]
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
