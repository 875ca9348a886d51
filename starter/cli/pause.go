package cli

import (
	"github.com/spf13/cobra"

	"drover/workflows/api"
)

func (a *app) pauseCommand() *cobra.Command {
	return a.verb("pause", "Stop replicating a machine until resume",
		"Stop replicating a machine until resume. Its recovery points stay.", api.ActionPause)
}
