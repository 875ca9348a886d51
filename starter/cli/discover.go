package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"drover/datapath/ident"
	"drover/workflows/api"
)

// discovered is a vCenter's inventory with what the agents in its VMs say.
type discovered struct {
	api.DiscoveryStatus
	VMs    []api.VM          `json:"vms"` // whole, however many there are
	Agents []api.AgentReport `json:"agents"`
}

func (a *app) discoverCommand() *cobra.Command {
	var details bool
	var tag string
	cmd := &cobra.Command{
		Use:   "discover [VCENTER]",
		Short: "Look for VMs in vCenter now, and list them",
		Long: "Look for VMs in vCenter now, and list them with their machine ids and disks, the agents in them, and whether the guests\n" +
			"would boot in the target (column preflight), protected or not. With one vCenter known, its name can be left out.\n" +
			"With --tag, those alone that have the tag in vCenter.\n" +
			"With --details, for each VM that has an agent how changes are found, the disks as the guest has them, and the findings with what to do.",
		Example: "  drover discover vc-1\n  drover discover vc-1 --details\n  drover discover vc-1 --tag tier/gold\n  drover discover vc-1 --json",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.connect(cmd.Context()); err != nil {
				return err
			}
			id, err := a.discovery(cmd.Context(), args)
			if err != nil {
				return err
			}
			a.note("looking...")
			d, err := update[api.DiscoveryStatus](cmd.Context(), a, id, api.DiscoveryRefresh, struct{}{})
			if err != nil {
				return err
			}
			if d.Error != "" {
				return fmt.Errorf("discovery of %s: %s", d.VCenter.Name, d.Error)
			}
			if tag != "" {
				d.VMs = slices.DeleteFunc(d.VMs, func(vm api.VM) bool { return !slices.Contains(tagWords(vm), tag) })
			}
			out, err := a.withAgents(cmd.Context(), d)
			if err != nil {
				return err
			}
			return a.print(out, func(w io.Writer) {
				printVMs(w, out)
				if details {
					printGuests(w, out)
				}
			})
		},
	}
	cmd.Flags().BoolVar(&details, "details", false, "show what each agent reports of its guest")
	cmd.Flags().StringVar(&tag, "tag", "", "list the VMs alone that have this tag, CATEGORY/NAME")
	return cmd
}

// withAgents adds what the agents say, in the order of the VMs.
func (a *app) withAgents(ctx context.Context, d api.DiscoveryStatus) (discovered, error) {
	out := discovered{DiscoveryStatus: d, VMs: d.VMs, Agents: []api.AgentReport{}}
	machines := make([]ident.MachineID, len(d.VMs))
	for i, vm := range d.VMs {
		machines[i] = vm.Machine
	}
	agents, err := a.agents(ctx, machines)
	if err != nil {
		return out, fmt.Errorf("ask for the agents: %w", err)
	}
	for _, m := range machines {
		if r, ok := agents[m]; ok {
			out.Agents = append(out.Agents, r)
		}
	}
	return out, nil
}

// discovery gives the workflow of the vCenter that is named, or of the only one.
func (a *app) discovery(ctx context.Context, args []string) (string, error) {
	if len(args) == 1 {
		return api.DiscoveryWorkflowID(args[0]), nil
	}
	all, err := a.discoveries(ctx)
	switch {
	case err != nil:
		return "", err
	case len(all) == 0:
		return "", &notFoundError{fmt.Errorf("no vCenter is known; add one with drover vcenter add")}
	case len(all) > 1:
		return "", &usageError{fmt.Errorf("%d vCenters are known, name one: %s", len(all), strings.Join(all, ", "))}
	}
	return all[0], nil
}

func (a *app) discoveries(ctx context.Context) ([]string, error) {
	return a.ids(ctx, fmt.Sprintf("WorkflowType='%s' AND ExecutionStatus='Running'", api.WorkflowDiscovery), maxListed)
}

func printVMs(w io.Writer, d discovered) {
	agents := map[ident.MachineID]api.AgentReport{}
	for _, r := range d.Agents {
		agents[r.Machine] = r
	}
	t := table.NewWriter()
	t.SetOutputMirror(w)
	t.AppendHeader(table.Row{"VM", "power", "CPUs", "memory", "disks", "agent", "preflight", "tags", "machine id", "BIOS uuid"})
	t.SuppressEmptyColumns()
	for _, vm := range d.VMs {
		power := "off"
		if vm.PoweredOn {
			power = "on"
		}
		disks := make([]string, len(vm.Disks))
		for i, disk := range vm.Disks {
			disks[i] = fmt.Sprintf("%s %s", disk.Label, size(disk.Size))
		}
		agent, preflight := "-", "-"
		if r, ok := agents[vm.Machine]; ok {
			agent, preflight = strings.TrimSpace(r.Version+" "+r.State), preflightWord(r.Preflight)
		}
		t.AppendRow(table.Row{vm.Name, power, vm.CPUs, size(int64(vm.MemoryMB) << 20), strings.Join(disks, "\n"), agent, preflight,
			strings.Join(tagWords(vm), "\n"), vm.Machine, vm.BIOSUUID})
	}
	t.Render()
	if d.TagsError != "" {
		_, _ = fmt.Fprintf(w, "warning: the tags may not be up to date: %s\n", d.TagsError)
	}
}

// tagWords are the VM's tags as people write them.
func tagWords(vm api.VM) []string {
	out := make([]string, len(vm.Tags))
	for i, t := range vm.Tags {
		out[i] = t.String()
	}
	return out
}

// printGuests shows what each agent reports. What is protected the machines know: here
// the disks are as the agents say.
func printGuests(w io.Writer, d discovered) {
	names := map[ident.MachineID]api.VM{}
	for _, vm := range d.VMs {
		names[vm.Machine] = vm
	}
	for _, r := range d.Agents {
		_, _ = fmt.Fprintf(w, "\n%s: ", names[r.Machine].Name)
		printAgent(w, &r)
		t := table.NewWriter()
		t.SetOutputMirror(w)
		t.AppendHeader(table.Row{"device", "size", "protected", "holds"})
		for _, disk := range r.Disks {
			protected := "no"
			if disk.Protected {
				protected = "yes"
			}
			t.AppendRow(table.Row{disk.Path, size(disk.Size), protected, strings.Join(holds(disk.Parts), "\n")})
		}
		t.Render()
		for _, disk := range r.Disks {
			if disk.Why != "" {
				_, _ = fmt.Fprintf(w, "%s: %s\n", disk.Path, disk.Why)
			}
		}
		printPreflight(w, r.Preflight)
	}
}
