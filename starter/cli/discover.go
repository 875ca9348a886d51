package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"drover/workflows/api"
)

func (a *app) discoverCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "discover [VCENTER]",
		Short:   "Look for VMs in vCenter now, and list them",
		Long:    "Look for VMs in vCenter now, and list them with their machine ids and disks.\nWith one vCenter known, its name can be left out.",
		Example: "  drover discover vc-1\n  drover discover vc-1 --json",
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
			return a.print(d, func(w io.Writer) { printVMs(w, d) })
		},
	}
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

func printVMs(w io.Writer, d api.DiscoveryStatus) {
	t := table.NewWriter()
	t.SetOutputMirror(w)
	t.AppendHeader(table.Row{"VM", "power", "CPUs", "memory", "disks", "machine id", "BIOS uuid"})
	for _, vm := range d.VMs {
		power := "off"
		if vm.PoweredOn {
			power = "on"
		}
		disks := make([]string, len(vm.Disks))
		for i, disk := range vm.Disks {
			disks[i] = fmt.Sprintf("%s %s", disk.Label, size(disk.Size))
		}
		t.AppendRow(table.Row{vm.Name, power, vm.CPUs, size(int64(vm.MemoryMB) << 20), strings.Join(disks, "\n"), vm.Machine, vm.BIOSUUID})
	}
	t.Render()
}
