package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"drover/datapath/ident"
	"drover/datapath/recover"
	"drover/datapath/replica"
)

// momentLine is a moment that all machines of a consistency group have.
type momentLine struct {
	Group       string            `json:"group"`
	Round       ident.Round       `json:"round"`
	Time        time.Time         `json:"time"`
	Consistency ident.Consistency `json:"consistency"` // the weakest of its machines
	Points      map[string]uint64 `json:"points"`      // by machine
}

func (a *app) groups() *cobra.Command {
	return &cobra.Command{
		Use: "groups", Short: "List the moments that machines of a consistency group have in common", Args: cobra.NoArgs,
		Long: "List the moments that all machines of a consistency group have in common, oldest first, with each machine's point.\n" +
			"Written out from these points, the machines are as they were at one moment.",
		Example: "  drover-recover groups --store /mnt/seed\n  drover-recover write db-1 --point 214 --store /mnt/seed --out /mnt/db-1",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			machines, err := recover.Machines(cmd.Context(), s)
			if err != nil {
				return err
			}
			moments, err := replica.Moments(cmd.Context(), s)
			if err != nil {
				return err
			}
			lines := momentLines(machines, moments)
			return a.print(cmd.OutOrStdout(), lines, func(t table.Writer) {
				t.AppendHeader(table.Row{"time", "group", "round", "consistency", "points"})
				for _, l := range lines {
					var points []string
					for name, id := range l.Points {
						points = append(points, fmt.Sprintf("%s %d", name, id))
					}
					slices.Sort(points)
					t.AppendRow(table.Row{l.Time.UTC().Format(time.RFC3339), l.Group, l.Round, l.Consistency, strings.Join(points, "\n")})
				}
			})
		},
	}
}

func momentLines(machines []replica.State, moments []replica.Moment) []momentLine {
	names := map[ident.MachineID]string{}
	for _, m := range machines {
		names[m.Spec.Machine] = m.Spec.Name
	}
	lines := []momentLine{}
	for _, m := range moments {
		if !m.Whole() {
			continue
		}
		l := momentLine{Group: m.Group, Round: m.Round, Time: m.Time, Consistency: m.Consistency(), Points: map[string]uint64{}}
		for id, p := range m.Points {
			l.Points[names[id]] = uint64(p.ID)
		}
		lines = append(lines, l)
	}
	return lines
}
