package cli

import (
	"github.com/spf13/cobra"

	"drover/workflows/api"
)

func (a *app) resumeCommand() *cobra.Command {
	return a.verb("resume", "Replicate a paused machine again",
		"Replicate a paused machine again; what changed meanwhile is found by checksums.", api.ActionResume)
}
