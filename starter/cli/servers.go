package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	"go.temporal.io/sdk/client"

	"drover/workflows/api"
)

const serversTimeout = time.Minute

func (a *app) serversCommand() *cobra.Command {
	return &cobra.Command{
		Use: "servers", Short: "List the process servers and master targets with their health",
		Long: "List the process servers and master targets with their health: OK, Warning or Critical, and what was found.\n" +
			"Looked at are processors, memory, room in the spool, how soon the backlog is applied, and whether agents and the server are heard.",
		Example: "  drover servers\n  drover servers --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			servers, err := a.servers(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(servers, func(w io.Writer) { printServers(w, servers, time.Now()) })
		},
	}
}

func (a *app) servers(ctx context.Context) ([]api.ServerStatus, error) {
	if err := a.connect(ctx); err != nil {
		return nil, err
	}
	return ask[[]api.ServerStatus](ctx, a, serversTimeout, client.StartWorkflowOptions{ID: "servers-" + uuid.NewString()}, api.WorkflowListServers)
}

func printServers(w io.Writer, servers []api.ServerStatus, now time.Time) {
	t := table.NewWriter()
	t.SetOutputMirror(w)
	t.AppendHeader(table.Row{"server", "role", "health", "heard", "machines", "address", "version"})
	for _, s := range servers {
		heard, status := "never", string(s.Health.Status)
		if !s.LastSeen.IsZero() {
			heard = age(now, s.LastSeen) + " ago"
		}
		if status == "" {
			status = "-" // it has never said
		}
		t.AppendRow(table.Row{s.Name, s.Role, status, heard, s.Assigned, s.Address, s.Version})
	}
	t.Render()
	for _, s := range servers {
		for _, f := range s.Health.Findings {
			_, _ = fmt.Fprintf(w, "%s: %s %s %s: %s\n    %s\n", s.Name, f.Status, f.Code, f.Component, f.Cause, f.Action)
		}
	}
}
