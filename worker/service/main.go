package service

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

// Main runs a server program's command until it ends or is asked to stop, and exits.
func Main(root *cobra.Command) {
	ctx, stop := Context(context.Background())
	err := root.ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, root.Name()+":", err)
		os.Exit(1)
	}
}

// VersionCommand prints what the program was built from.
func VersionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), Version())
			return err
		},
	}
}
