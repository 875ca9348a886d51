package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"drover/datapath/stream"
	"drover/starter/evidence"
	"drover/tests/lab"
	"drover/workflows/api"
)

// How long a step may take before the demo gives up.
const (
	replicateLimit = 4 * time.Minute
	// blobsLimit is for the same into page blobs, of which an emulator writes 15 MB/s.
	blobsLimit = 10 * time.Minute
	stateLimit = 2 * time.Minute
	planLimit  = 5 * time.Minute
)

// names are the machines, as arguments.
var names = []string{database, appOne, appTwo}

func (d *demo) start(ctx context.Context) error {
	if err := d.Start(ctx); err != nil {
		return err
	}
	d.say("Temporal %s with its UI http://%s, vCenter %s", d.TemporalAddress, d.UIAddress, d.VCenter.URL)
	return nil
}

func (d *demo) disks(ctx context.Context) error {
	if err := d.FormatDisks(ctx); err != nil {
		return err
	}
	for _, m := range d.report.Machines {
		d.say("%s: %d disk(s), %s in all", m.Name, m.Disks, bytes(m.DiskBytes))
	}
	return d.StartGuests(ctx)
}

func (d *demo) discover(ctx context.Context) error {
	if _, err := d.show(ctx, d.AddVCenterArgs()...); err != nil {
		return err
	}
	for _, what := range [][]string{{"vcenter", "check", lab.VCenterName}, {"servers"}} {
		out, err := d.show(ctx, what...)
		if err != nil {
			return err
		}
		d.print(out)
	}
	out, err := d.show(ctx, "discover", lab.VCenterName)
	if err != nil {
		return err
	}
	d.print(out)
	var found api.DiscoveryStatus
	if err := d.DroverJSON(ctx, &found, "discover", lab.VCenterName); err != nil {
		return err
	}
	for _, vm := range found.VMs {
		d.vms[vm.Name] = vm
	}
	return d.each(func(m *MachineReport) error {
		if len(d.vms[m.Name].Disks) != m.Disks {
			return fmt.Errorf("discovery found %d disks, want %d", len(d.vms[m.Name].Disks), m.Disks)
		}
		return d.EnrolAgent(ctx, m.Name)
	})
}

const policyFile = `name: gold
rpoThreshold: 1m
cutInterval: 6s
retention:
  keep: 24h
  steps:
    - {until: 2h, every: 0s}
    - {until: 24h, every: 1h}
resync:
  afterDisconnect: 5s
`

const planFile = `name: shop
rto: 10m
before:
  - name: announce
    script: {file: announce.sh, args: [begin]}
groups:
  - name: database
    machines: [{name: db-1}]
    after:
      - name: database is checked
        manual: {instructions: "Check that the database answers, then approve."}
        on: [planned, unplanned]
  - name: application
    machines: [{name: app-1}, {name: app-2}]
after:
  - name: announce the end
    script: {file: announce.sh, args: [end]}
`

const scriptFile = `#!/bin/sh
echo "$DROVER_PLAN $DROVER_KIND: $1"
echo "$DROVER_RUN $DROVER_STEP $1" >> announced
`

func (d *demo) writeFiles() error {
	return errors.Join(
		os.WriteFile(d.Path("policy.yaml"), []byte(policyFile), 0o600),
		os.WriteFile(d.Path("plan.yaml"), []byte(planFile), 0o600),
		os.WriteFile(d.Path("scripts", "announce.sh"), []byte(scriptFile), 0o700))
}

func (d *demo) protect(ctx context.Context) error {
	if err := d.writeFiles(); err != nil {
		return err
	}
	if _, err := d.show(ctx, "policy", "apply", "-f", d.Path("policy.yaml")); err != nil {
		return err
	}
	args := append([]string{"protect"}, names...)
	args = append(args, "--policy", "gold", "--network", lab.Network, "--subnet", lab.Subnet, "--test-network", lab.TestNetwork)
	if d.Azure != "" {
		args = append(args, "--relay")
	}
	if _, err := d.show(ctx, args...); err != nil {
		return err
	}
	limit := replicateLimit
	if d.Azure != "" {
		limit = blobsLimit
	}
	status, err := d.watch(ctx, limit, "initial replication", lab.InState(api.StateProtected, names...))
	if err != nil {
		return err
	}
	return d.each(func(m *MachineReport) (err error) {
		m.Initial, err = d.transfer(status, m, "initial replication")
		return err
	})
}

// transfer gives a machine's last base pass, and says what it moved.
func (d *demo) transfer(status map[string]lab.MachineLine, m *MachineReport, what string) (*api.Transfer, error) {
	all := status[m.Name].Machine.Transfers
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: no transfer is recorded", what)
	}
	t := all[len(all)-1]
	d.say("%s: %s moved %s of data, %s on the wire, for %s of disk (%.1f %%) in %s", m.Name, what,
		bytes(t.DataBytes), bytes(t.WireBytes), bytes(t.DiskBytes), 100*float64(t.WireBytes)/float64(t.DiskBytes), t.Took.D().Round(100*time.Millisecond))
	return &t, nil
}

func (d *demo) delta(ctx context.Context) error {
	return d.each(func(m *MachineReport) error {
		if _, err := d.WaitPoints(ctx, m.Name, 3, d.report.Started, stateLimit); err != nil {
			return err
		}
		return d.prove(ctx, "seed", m, "delta replication", 2)
	})
}

// verify compares source and replica, and checks the signed record with nothing but the
// store and the authority's certificate.
func (d *demo) verify(ctx context.Context) error {
	m, file := d.machine(database), d.Path("record.json")
	out, err := d.show(ctx, "verify", m.Name, "--deep", "--record", file)
	if err != nil {
		return err
	}
	d.print(out)
	record, err := lab.ReadRecord(file)
	if err != nil {
		return err
	}
	fine := record.Verdict == stream.VerdictEqual || record.Verdict == stream.VerdictUnsettled
	m.check("source and replica are equal while the application writes", fine && record.Differed() == 0, string(record.Verdict))
	checked, err := d.RecoverVerify(ctx, "seed", m.Name, file)
	m.check("the record's point is what was attested", err == nil, strings.TrimSpace(checked))
	d.print([]byte(checked))
	return err
}

func (d *demo) resync(ctx context.Context) error {
	m := d.machine(appTwo)
	d.Network(m.Name).Cut()
	d.say("the network of %s is cut; its application goes on writing", m.Name)
	status, err := d.WaitStatus(ctx, stateLimit, "marked for resync", lab.InState(api.StateResyncRequired, m.Name))
	if err != nil {
		return err
	}
	for _, p := range status[m.Name].Machine.Problems {
		d.say("%s: %s %s", m.Name, p.Code, p.Cause)
	}
	before, err := d.Points(ctx, m.Name)
	if err != nil {
		return err
	}
	d.Network(m.Name).Restore()
	begun := time.Now()
	if _, err := d.show(ctx, "resync", m.Name); err != nil {
		return err
	}
	status, err = d.watch(ctx, stateLimit, "resync", lab.InState(api.StateProtected, m.Name))
	if err != nil {
		return err
	}
	if m.Resync, err = d.transfer(status, m, "resync"); err != nil {
		return err
	}
	m.check("resync moves the difference only", m.Resync.WireBytes < m.DiskBytes/4, bytes(m.Resync.WireBytes)+" of "+bytes(m.DiskBytes))
	if _, err := d.WaitPoints(ctx, m.Name, 1, begun, stateLimit); err != nil {
		return err
	}
	after, err := d.Points(ctx, m.Name)
	if err != nil {
		return err
	}
	m.check("points from before the resync are still there", contains(after, before), fmt.Sprintf("%d before, %d now", len(before), len(after)))
	return d.prove(ctx, "seed", m, "resync", 0)
}

func (d *demo) drill(ctx context.Context) error {
	if _, err := d.show(ctx, "plan", "apply", "-f", d.Path("plan.yaml")); err != nil {
		return err
	}
	begun := time.Now()
	run, err := d.plan(ctx, "test")
	if err != nil {
		return err
	}
	results := run.Results()
	if err := d.each(func(m *MachineReport) error { return d.booted(ctx, m, results[m.Name], "test failover", begun) }); err != nil {
		return err
	}
	if err := d.clean(ctx, true); err != nil {
		return err
	}
	if _, err := d.plan(ctx, "cleanup"); err != nil {
		return err
	}
	return d.clean(ctx, false)
}

func (d *demo) failover(ctx context.Context) error {
	dry, err := d.dryRun(ctx)
	if err != nil {
		return err
	}
	begun := time.Now()
	run, err := d.plan(ctx, "planned")
	if err != nil {
		return err
	}
	if !slices.EqualFunc(dry, run.Steps, func(id string, s api.PlanStep) bool { return s.ID == id }) {
		return fmt.Errorf("the dry run had the steps %v, the run %v", dry, run.Steps)
	}
	results := run.Results()
	d.say("the plan took %s", run.RTO.D().Round(100*time.Millisecond))
	if err := d.evidence(ctx, run); err != nil {
		return err
	}
	return d.each(func(m *MachineReport) error {
		r := results[m.Name]
		m.RPO, m.RTO = r.RPO, r.RTO
		d.say("%s: RPO %s, RTO %s, point %d", m.Name, r.RPO.D().Round(time.Millisecond), r.RTO.D().Round(100*time.Millisecond), r.Point.ID)
		return d.booted(ctx, m, r, "failover", begun)
	})
}

// dryRun shows what the failover would do and gives its steps. Nothing may be in its
// way, and the plan must be the one that the drill has tested.
func (d *demo) dryRun(ctx context.Context) (steps []string, err error) {
	args := []string{"plan", "run", planName, "--planned", "--dry-run"}
	fmt.Println("      $ drover " + strings.Join(args, " "))
	var dry struct {
		Steps    []struct{ ID string }
		Drill    string
		Changes  []string
		Problems []string
	}
	if err := d.DroverJSON(ctx, &dry, args...); err != nil {
		return nil, err
	}
	if dry.Drill == "" || len(dry.Changes)+len(dry.Problems) > 0 {
		return nil, fmt.Errorf("dry run: drill %q, changes %v, problems %v", dry.Drill, dry.Changes, dry.Problems)
	}
	for _, s := range dry.Steps {
		steps = append(steps, s.ID)
	}
	d.say("dry run: %d steps, nothing in the way; unchanged since the drill %s", len(steps), dry.Drill)
	return steps, nil
}

// evidence has the run's evidence written, and looks whether it has all that happened.
func (d *demo) evidence(ctx context.Context, run lab.PlanRun) error {
	if _, err := d.show(ctx, "evidence", run.Run, "--dir", d.Path("evidence")); err != nil {
		return err
	}
	var pack evidence.Pack
	if err := d.DroverJSON(ctx, &pack, "evidence", planName); err != nil { // the plan's newest run
		return err
	}
	if len(pack.Decisions) != 1 || len(pack.Machines) != len(names) || len(pack.Steps) != len(run.Steps) || pack.RTO.Verdict != evidence.Met {
		return fmt.Errorf("evidence of %s: %d decisions, %d machines, %d steps, RTO %s", run.Run, len(pack.Decisions), len(pack.Machines), len(pack.Steps), pack.RTO)
	}
	d.say("evidence of the run: %s; RTO of the whole %s", d.Path("evidence", "evidence.md"), pack.RTO)
	return d.each(func(m *MachineReport) error {
		for _, e := range pack.Machines {
			if e.Name == m.Name {
				m.check("evidence: RPO and RTO meet their goals", e.RPO.Verdict == evidence.Met && e.RTO.Verdict == evidence.Met, "RPO "+e.RPO.String()+", RTO "+e.RTO.String())
			}
		}
		return nil
	})
}

// commitPause lets the application write in the target.
const commitPause = 4 * time.Second

func (d *demo) commit(ctx context.Context) error {
	if _, err := d.plan(ctx, "commit"); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(commitPause):
		return nil
	}
}

func (d *demo) reprotect(ctx context.Context) error {
	begun := time.Now()
	if _, err := d.plan(ctx, "reprotect"); err != nil {
		return err
	}
	status, err := d.WaitStatus(ctx, stateLimit, "reverse protection", lab.InState(api.StateProtectedReverse, names...))
	if err != nil {
		return err
	}
	if d.Azure != "" {
		if d.Relay() == nil {
			return errors.New("there is no temporary process server in Azure, by way of which the machines should stream")
		}
		d.say("one temporary process server in Azure passes all their streams on")
	}
	return d.each(func(m *MachineReport) (err error) {
		if m.Reprotect, err = d.transfer(status, m, "reprotect"); err != nil {
			return err
		}
		m.check("reprotect moves the difference only", m.Reprotect.WireBytes < m.DiskBytes/4, bytes(m.Reprotect.WireBytes)+" of "+bytes(m.DiskBytes))
		if _, err := d.WaitPoints(ctx, m.Name, 2, begun, stateLimit); err != nil {
			return err
		}
		return d.prove(ctx, "retention", m, "reverse replication", 2)
	})
}

func (d *demo) failback(ctx context.Context) error {
	begun := time.Now()
	run, err := d.plan(ctx, "failback")
	if err != nil {
		return err
	}
	if err := d.WaitNoRelay(ctx); err != nil {
		return err
	}
	results := run.Results()
	return d.each(func(m *MachineReport) error {
		r := results[m.Name]
		m.FailbackRTO = r.RTO
		d.say("%s: failback RTO %s", m.Name, r.RTO.D().Round(100*time.Millisecond))
		return d.booted(ctx, m, r, "failback", begun)
	})
}

func (d *demo) reenable(ctx context.Context) error {
	begun := time.Now()
	if _, err := d.plan(ctx, "reenable"); err != nil {
		return err
	}
	status, err := d.WaitStatus(ctx, stateLimit, "protection", lab.InState(api.StateProtected, names...))
	if err != nil {
		return err
	}
	return d.each(func(m *MachineReport) (err error) {
		if m.Reenable, err = d.transfer(status, m, "re-enable"); err != nil {
			return err
		}
		m.check("re-enable moves the difference only", m.Reenable.WireBytes < m.DiskBytes/4, bytes(m.Reenable.WireBytes)+" of "+bytes(m.DiskBytes))
		_, err = d.WaitPoints(ctx, m.Name, 2, begun, stateLimit)
		return err
	})
}

func (d *demo) final(ctx context.Context) error {
	return d.each(func(m *MachineReport) error { return d.prove(ctx, "seed", m, "all recovery points", 0) })
}
