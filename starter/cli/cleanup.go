package cli

import (
	"github.com/spf13/cobra"

	"drover/workflows/api"
)

func (a *app) cleanupCommand() *cobra.Command {
	return a.verb("cleanup", "Delete what a test failover made",
		"Delete what a test failover of a machine made.", api.ActionCleanup)
}
