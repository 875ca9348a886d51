package cli

import (
	"github.com/spf13/cobra"

	"drover/workflows/api"
)

func (a *app) commitCommand() *cobra.Command {
	return a.verb("commit", "Make a failover final",
		"Make a failover final: the recovery point can no longer be changed.", api.ActionCommit)
}
