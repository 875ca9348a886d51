package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"drover/workflows/api"
)

func (a *app) unprotectCommand() *cobra.Command {
	var confirm string
	var keep bool
	cmd := &cobra.Command{
		Use:     "unprotect VM --yes-name VM",
		Short:   "Stop protecting a machine, and delete its replica and recovery points",
		Long:    "Stop protecting a machine, and delete its replica and all its recovery points unless --keep-data is given.\nThe name must be given twice, because there is no way back.",
		Example: "  drover unprotect db-1 --yes-name db-1",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if confirm != args[0] {
				return &usageError{fmt.Errorf("this deletes the recovery points of %s; repeat the name with --yes-name %s", args[0], args[0])}
			}
			return a.act(cmd.Context(), args[0], api.ActionUnprotect, api.ActionRequest{KeepData: keep})
		},
	}
	cmd.Flags().StringVar(&confirm, "yes-name", "", "the machine's name again")
	cmd.Flags().BoolVar(&keep, "keep-data", false, "keep the replica and its recovery points")
	return cmd
}
