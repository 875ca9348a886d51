package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	enums "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"

	"drover/workflows/api"
)

func (a *app) protectCommand() *cobra.Command {
	var policy, vcenter string
	in := api.MachineInput{}
	cmd := &cobra.Command{
		Use:   "protect VM... --policy POLICY --network NETWORK --test-network NETWORK",
		Short: "Protect VMs: replicate them from now on",
		Long: "Protect VMs: replicate them from now on, under a policy, with what they become on the target side.\n" +
			"All VMs are checked before the first is protected. Watch the initial replication with drover status --watch.",
		Example: "  drover protect db-1 app-1 --policy gold --network prod --subnet servers --test-network sandbox",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if in.Target.Network == "" || policy == "" {
				return &usageError{errors.New("--policy and --network are needed")}
			}
			if wrong := api.ValidateTarget(in.Target); len(wrong) > 0 {
				return &usageError{wrong[0]}
			}
			p, err := a.policyNamed(cmd.Context(), policy)
			if err != nil {
				return err
			}
			in.Policy, in.PolicyHash = p.Policy, p.Hash
			vms, err := a.findVMs(cmd.Context(), vcenter, args)
			if err != nil {
				return err
			}
			return a.protect(cmd.Context(), vms, in)
		},
	}
	f := cmd.Flags()
	f.StringVar(&policy, "policy", "", "policy, as kept in the vault")
	f.StringVar(&vcenter, "vcenter", "", "vCenter, when several have a VM of that name")
	f.StringVar(&in.Target.Network, "network", "", "target network")
	f.StringVar(&in.Target.Subnet, "subnet", "", "subnet of the target network")
	f.StringVar(&in.Target.TestNetwork, "test-network", "", "isolated network for test failovers")
	f.StringVar(&in.Target.Size, "target-size", "", "size of the target machine (default: the smallest that fits)")
	f.StringVar(&in.Target.Address, "target-address", "", "IP address that the target machine keeps")
	f.StringSliceVar(&in.Target.FallBackSizes, "fall-back-sizes", nil, "sizes to take in order when there is no room for --target-size")
	f.StringVar(&in.Target.AddressPolicy, "address-policy", "", "when --target-address is taken: refuse (default) or next")
	f.StringVar(&in.Target.Zone, "zone", "", "availability zone of the target machine")
	f.StringVar(&in.Target.AvailabilitySet, "availability-set", "", "availability set of the target machine, instead of a zone")
	f.StringVar(&in.Target.DiskType, "disk-type", "", "type of the target machine's disks, as the target calls it")
	f.StringVar(&in.Target.Health, "health", "", "what shows that the started machine is up: running (default), agent, command or tcp:PORT")
	f.BoolVar(&in.Target.Relay, "relay", false, "on the way back stream by way of a temporary process server in the target")
	f.StringVar(&in.Site, "site", "", "site whose process servers take the machine")
	f.StringSliceVar(&in.Exclude, "exclude", nil, "disks not to protect: labels or backing uuids")
	return cmd
}

// findVMs finds all the VMs before anything is started.
func (a *app) findVMs(ctx context.Context, vcenter string, names []string) ([]api.VM, error) {
	all, err := a.discoveries(ctx)
	if err != nil {
		return nil, err
	}
	found := map[string][]api.VM{}
	for _, id := range all {
		d, err := query[api.DiscoveryStatus](ctx, a, id)
		if err != nil {
			return nil, err
		}
		for _, vm := range d.VMs {
			if vcenter == "" || d.VCenter.Name == vcenter {
				found[vm.Name] = append(found[vm.Name], vm)
			}
		}
	}
	out, seen := make([]api.VM, 0, len(names)), map[string]bool{}
	for _, name := range names {
		switch vms := found[name]; {
		case seen[name]:
			return nil, &usageError{fmt.Errorf("VM %s is named twice", name)}
		case len(vms) == 0:
			return nil, &notFoundError{fmt.Errorf("no VM %q in vCenter; `drover discover` lists them", name)}
		case len(vms) > 1:
			return nil, &usageError{fmt.Errorf("%d VMs are named %s; name one vCenter with --vcenter", len(vms), name)}
		case len(vms[0].Disks) == 0:
			return nil, &usageError{fmt.Errorf("VM %s has no disks to protect", name)}
		default:
			seen[name] = true
			out = append(out, vms[0])
		}
	}
	return out, nil
}

// protected is one line of the result.
type protected struct {
	Name     string `json:"name"`
	Machine  string `json:"machine"`
	Workflow string `json:"workflow"`
}

func (a *app) protect(ctx context.Context, vms []api.VM, in api.MachineInput) error {
	var out []protected
	for _, vm := range vms {
		in.VM = vm
		run, err := a.client.ExecuteWorkflow(ctx, client.StartWorkflowOptions{
			ID: api.MachineWorkflowID(vm.Machine), TaskQueue: api.ControlQueue,
			WorkflowIDConflictPolicy:                 enums.WORKFLOW_ID_CONFLICT_POLICY_FAIL,
			WorkflowExecutionErrorWhenAlreadyStarted: true,
			StaticSummary:                            vm.Name,
		}, api.WorkflowMachine, in)
		var already *serviceerror.WorkflowExecutionAlreadyStarted
		if errors.As(err, &already) {
			return errors.Join(fmt.Errorf("VM %s is protected already: see drover status %s", vm.Name, vm.Name), done(out))
		}
		if err != nil {
			return errors.Join(fmt.Errorf("protect VM %s: %w", vm.Name, err), done(out))
		}
		out = append(out, protected{vm.Name, vm.Machine.String(), run.GetID()})
	}
	return a.print(out, func(w io.Writer) {
		for _, p := range out {
			_, _ = fmt.Fprintf(w, "%s is being protected (machine %s)\n", p.Name, p.Machine)
		}
	})
}

// done says what was protected before an error.
func done(out []protected) error {
	if len(out) == 0 {
		return nil
	}
	names := make([]string, len(out))
	for i, p := range out {
		names[i] = p.Name
	}
	return fmt.Errorf("protected before that: %v", names)
}
