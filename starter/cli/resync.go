package cli

import (
	"github.com/spf13/cobra"

	"drover/workflows/api"
)

func (a *app) resyncCommand() *cobra.Command {
	var request api.ActionRequest
	var stop bool
	cmd := &cobra.Command{
		Use: "resync VM", Short: "Compare a machine's disks with its replica by checksums and copy what differs",
		Long: "Compare a machine's disks with its replica by checksums and copy what differs.\nThe recovery points that exist stay usable meanwhile.\n" +
			"It takes the VM's disks as they are now: new ones are protected from then on, and those that were detached in vCenter are no more.\n" +
			"A disk that has grown is taken without this command; so are new ones with newDisks: protect in the policy.\n" +
			"With --stop the resync that runs is stopped; drover resync VM goes on where it was, nothing else does.",
		Example: "  drover resync db-1\n  drover resync db-1 --exclude \"Hard disk 3\"\n  drover resync db-1 --stop",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if stop {
				return a.act(cmd.Context(), args[0], api.ActionStopResync, api.ActionRequest{})
			}
			return a.act(cmd.Context(), args[0], api.ActionResync, request)
		},
	}
	cmd.Flags().StringSliceVar(&request.Exclude, "exclude", nil, "disks not to protect from now on: labels or backing uuids; when no protected disk is among them, nothing is resynchronised")
	cmd.Flags().StringSliceVar(&request.Include, "include", nil, "excluded disks to protect from now on")
	cmd.Flags().BoolVar(&stop, "stop", false, "stop the resync that runs")
	cmd.MarkFlagsMutuallyExclusive("stop", "exclude")
	cmd.MarkFlagsMutuallyExclusive("stop", "include")
	return cmd
}
