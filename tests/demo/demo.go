package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"drover/tests/lab"
	"drover/workflows/api"
)

// The application: a database and two application servers.
const (
	database = "db-1"
	appOne   = "app-1"
	appTwo   = "app-2"
	planName = "shop"
)

const diskSize = 384 << 20

// machines are the VMs of the demo, with disks of a few hundred MB of real files.
func machines(content string) []lab.VMSpec {
	if content == "" {
		content = goRoot()
	}
	disk := lab.DiskSpec{Size: diskSize, Content: content}
	return []lab.VMSpec{
		{Name: database, Disks: []lab.DiskSpec{disk, disk}},
		{Name: appOne, Disks: []lab.DiskSpec{disk}},
		{Name: appTwo, Disks: []lab.DiskSpec{disk}},
	}
}

func goRoot() string {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "/usr/share"
	}
	return strings.TrimSpace(string(out))
}

// demo is a run of the demo.
type demo struct {
	*lab.Lab
	report Report
	vms    map[string]api.VM
	facts  []string // of the running step
}

func newDemo(l *lab.Lab) *demo {
	d := &demo{Lab: l, vms: map[string]api.VM{}, report: Report{Started: time.Now()}}
	for _, vm := range l.VMs {
		m := &MachineReport{Name: vm.Name, Disks: len(vm.Disks), Proofs: map[string]lab.Proof{}}
		for _, disk := range vm.Disks {
			m.DiskBytes += disk.Size
		}
		d.report.Machines = append(d.report.Machines, m)
	}
	return d
}

func (d *demo) machine(name string) *MachineReport {
	for _, m := range d.report.Machines {
		if m.Name == name {
			return m
		}
	}
	panic("demo: no machine " + name)
}

// each calls f for every machine, in the report's order.
func (d *demo) each(f func(*MachineReport) error) error {
	for _, m := range d.report.Machines {
		if err := f(m); err != nil {
			return fmt.Errorf("%s: %w", m.Name, err)
		}
	}
	return nil
}

// play runs the steps in order and ends with the first that fails.
func (d *demo) play(ctx context.Context) error {
	steps := []struct {
		name string
		run  func(context.Context) error
	}{
		{"Start Temporal, vCenter, the configuration server, a process server and a master target", d.start},
		{"Make the machines' disks: real ext4 file systems", d.disks},
		{"Discover the machines in vCenter and enrol their agents", d.discover},
		{"Protect the machines: initial replication", d.protect},
		{"Delta replication under load: recovery points appear", d.delta},
		{"Compare a machine with its replica, by the stored bytes, while its application writes", d.verify},
		{"Cut a machine's network until it is marked, then resynchronise by checksums", d.resync},
		{"Test failover of the recovery plan in an isolated network, and clean-up", d.drill},
		{"Failover of the recovery plan, with scripts and a manual pause", d.failover},
		{"Commit, and let the application run in the target", d.commit},
		{"Failback 1/3: reprotect through the master target, difference only", d.reprotect},
		{"Failback 2/3: failover to on-premises", d.failback},
		{"Failback 3/3: re-enable replication, difference only", d.reenable},
		{"Read back every recovery point that is left", d.final},
	}
	for i, s := range steps {
		fmt.Printf("\n\033[1m[%2d/%d] %s\033[0m\n", i+1, len(steps), s.name)
		begun := time.Now()
		d.facts = nil
		err := s.run(ctx)
		entry := StepReport{Name: s.name, OK: err == nil, Seconds: time.Since(begun).Seconds(), Facts: d.facts}
		if err != nil {
			entry.Error = err.Error()
		}
		d.report.Steps = append(d.report.Steps, entry)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		fmt.Printf("        done in %.1f s\n", entry.Seconds)
	}
	return nil
}

// say prints a fact and keeps it for the report.
func (d *demo) say(format string, args ...any) {
	fact := fmt.Sprintf(format, args...)
	d.facts = append(d.facts, fact)
	fmt.Println("        " + fact)
}

// show prints a command as an operator would type it, and runs it.
func (d *demo) show(ctx context.Context, args ...string) ([]byte, error) {
	fmt.Println("      $ drover " + strings.Join(args, " "))
	return d.Drover(ctx, args...)
}
