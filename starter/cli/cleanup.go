package cli

import (
	"github.com/spf13/cobra"

	"drover/workflows/api"
)

func (a *app) cleanupCommand() *cobra.Command {
	var r api.ActionRequest
	cmd := &cobra.Command{
		Use: "cleanup VM", Short: "Delete what a test failover made",
		Long:    "Delete what a test failover of a machine made.",
		Example: "  drover cleanup db-1 --notes \"the application came up; its licence server did not\"",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.act(cmd.Context(), args[0], api.ActionCleanup, r)
		},
	}
	cmd.Flags().StringVar(&r.Reason, "notes", "", "what was seen in the test; kept with its verdict")
	return cmd
}
