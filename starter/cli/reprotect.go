package cli

import (
	"github.com/spf13/cobra"

	"drover/workflows/api"
)

func (a *app) reprotectCommand() *cobra.Command {
	return a.verb("reprotect", "Replicate from the target back on to the original disks",
		"Failback, phase 1: attach the original machine's disks to a master target and replicate the\ndifference from the target machine on to them.", api.ActionReprotect)
}
