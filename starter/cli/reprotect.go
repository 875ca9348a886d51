package cli

import (
	"errors"

	"github.com/spf13/cobra"

	"drover/workflows/api"
)

func (a *app) reprotectCommand() *cobra.Command {
	var at locationFlags
	var reason string
	cmd := &cobra.Command{
		Use:   "reprotect VM [--datastore DATASTORE ...]",
		Short: "Replicate from the target back on to the original disks, or on to those of a VM made anew",
		Long: "Failback, phase 1: attach the original machine's disks to a master target and replicate the\n" +
			"difference from the target machine on to them. With --datastore the VM is made anew instead, as it was,\n" +
			"with empty thin disks, on the master target's host or on --host; the original, if it is there, stays off and is not touched.\n" +
			"The machine stays the same: its recovery points, its plans and its policy go on with the new VM.",
		Example: "  drover reprotect db-1\n" +
			"  drover reprotect db-1 --datastore ssd-2 --only-if-gone\n" +
			"  drover reprotect db-1 --to-vcenter vc-2 --datastore ssd-2 --host esx-9 --map-network servers=vlan-7 --reason \"site A burns\"",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := at.into()
			if err != nil {
				return err
			}
			return a.act(cmd.Context(), args[0], api.ActionReprotect, api.ActionRequest{Location: l, Reason: reason})
		},
	}
	at.add(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "why, when nobody can tell that the original is off and the VM is made anew")
	return cmd
}

// locationFlags say where a VM is made anew.
type locationFlags struct{ api.Location }

func (l *locationFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&l.Datastore, "datastore", "", "make the VM anew on this datastore, which the master target's host must have, too")
	f.StringVar(&l.VCenter, "to-vcenter", "", "vCenter to make it in (default: that of the original)")
	f.StringVar(&l.Host, "host", "", "host to make it on (default: the master target's)")
	f.StringVar(&l.Pool, "pool", "", "resource pool (default: all of the host or its cluster)")
	f.StringVar(&l.Folder, "folder", "", "folder of VMs, such as servers/linux (default: the datacenter's)")
	f.StringVar(&l.Name, "name", "", "name of the VM (default: that of the original)")
	f.StringToStringVar(&l.Networks, "map-network", nil, "networks to take instead of the original's: servers=vlan-7")
	f.StringVar(&l.Site, "to-site", "", "site of the master target (default: the machine's)")
	f.BoolVar(&l.OnlyIfGone, "only-if-gone", false, "take the original as long as it is there")
}

// into gives the location, nil when none is named.
func (l *locationFlags) into() (*api.Location, error) {
	none := api.Location{}
	if l.Equal(&none) {
		return nil, nil
	}
	if wrong := api.ValidateLocation(l.Location); len(wrong) > 0 {
		if l.Datastore == "" {
			return nil, &usageError{errors.New("a VM is made anew on a --datastore: name it")}
		}
		return nil, &usageError{wrong[0]}
	}
	return &l.Location, nil
}
