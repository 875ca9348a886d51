package cli

import (
	"github.com/spf13/cobra"

	"drover/workflows/api"
)

func (a *app) reenableCommand() *cobra.Command {
	return a.verb("reenable", "Replicate from the original machine as before",
		"Failback, phase 3: replicate from the original machine to the vault again; only the difference moves.", api.ActionReenable)
}
