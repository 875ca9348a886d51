package cli

import (
	"github.com/spf13/cobra"

	"drover/workflows/api"
)

func (a *app) resyncCommand() *cobra.Command {
	return a.verb("resync", "Compare a machine's disks with its replica by checksums and copy what differs",
		"Compare a machine's disks with its replica by checksums and copy what differs.\nThe recovery points that exist stay usable meanwhile.", api.ActionResync)
}
