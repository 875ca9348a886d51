package cli

import (
	"github.com/spf13/cobra"

	"drover/workflows/api"
)

func (a *app) resyncCommand() *cobra.Command {
	var request api.ActionRequest
	cmd := &cobra.Command{
		Use: "resync VM", Short: "Compare a machine's disks with its replica by checksums and copy what differs",
		Long: "Compare a machine's disks with its replica by checksums and copy what differs.\nThe recovery points that exist stay usable meanwhile.\n" +
			"It takes the VM's disks as they are now: new ones are protected from then on, and those that were detached in vCenter are no more.\n" +
			"A disk that has grown is taken without this command; so are new ones with newDisks: protect in the policy.",
		Example: "  drover resync db-1\n  drover resync db-1 --exclude \"Hard disk 3\"",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.act(cmd.Context(), args[0], api.ActionResync, request)
		},
	}
	cmd.Flags().StringSliceVar(&request.Exclude, "exclude", nil, "disks not to protect from now on: labels or backing uuids; when no protected disk is among them, nothing is resynchronised")
	cmd.Flags().StringSliceVar(&request.Include, "include", nil, "excluded disks to protect from now on")
	return cmd
}
