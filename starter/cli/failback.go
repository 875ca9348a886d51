package cli

import (
	"github.com/spf13/cobra"

	"drover/workflows/api"
)

func (a *app) failbackCommand() *cobra.Command {
	return a.verb("failback", "Bring the original machine up again",
		"Failback, phase 2: final recovery point, target machine off, original machine on.", api.ActionFailback)
}
