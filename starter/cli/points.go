package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	"go.temporal.io/sdk/client"

	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/workflows/api"
)

const pointsTimeout = time.Minute

func (a *app) pointsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "points VM", Short: "List a machine's recovery points, oldest first",
		Long: "List a machine's recovery points, oldest first. Points of a consistency group show its round: machines with the same round have\n" +
			"the same moment. While a machine replicates back, the points on the master target are listed.",
		Example: "  drover points db-1",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			points, err := a.points(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.print(points, func(w io.Writer) { printPoints(w, points) })
		},
	}
}

func (a *app) points(ctx context.Context, name string) ([]replica.Point, error) {
	m, err := a.member(ctx, name)
	if err != nil {
		return nil, err
	}
	in := api.PointsInput{Machine: m.Machine}
	status, err := query[api.MachineStatus](ctx, a, api.MachineWorkflowID(m.Machine))
	if err != nil {
		return nil, err
	}
	if status.Assignment.Role == ident.RoleMasterTarget {
		in.Server = status.Assignment.Server
	}
	return ask[[]replica.Point](ctx, a, pointsTimeout, client.StartWorkflowOptions{ID: "points-" + uuid.NewString()}, api.WorkflowListPoints, in)
}

// groupOf names the round that a point is of, and how many machines it brought together.
func groupOf(p replica.Point) string {
	if p.Group == nil {
		return ""
	}
	return fmt.Sprintf("%s %s (%d machines)", p.Group.Name, p.Group.Round, p.Group.Members)
}

func printPoints(w io.Writer, points []replica.Point) {
	t := table.NewWriter()
	t.SetOutputMirror(w)
	t.AppendHeader(table.Row{"point", "time", "consistency", "group", "freeze", "undo", "held by", "note"})
	for _, p := range points {
		holders := make([]string, len(p.Holds))
		for i, h := range p.Holds {
			holders[i] = h.Owner
		}
		t.AppendRow(table.Row{p.ID, p.Time.Local().Format(time.DateTime), p.Consistency, groupOf(p), p.Freeze.Round(time.Millisecond), size(p.UndoBytes), strings.Join(holders, "\n"), p.Note})
	}
	t.AppendFooter(table.Row{"", fmt.Sprintf("%d points", len(points))})
	t.Render()
}
