package main

import (
	"context"

	"github.com/spf13/cobra"
)

// start carries out what the command line says.
func start(ctx context.Context, root *cobra.Command) error { return root.ExecuteContext(ctx) }
