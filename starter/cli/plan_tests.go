package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"drover/workflows/api"
)

// testLine is a machine's last test failover.
type testLine struct {
	Machine string     `json:"machine"`
	Plans   []string   `json:"plans,omitempty"`
	Tested  time.Time  `json:"tested,omitzero"`
	Verdict string     `json:"verdict"` // "passed", what failed, or "never tested"
	Notes   string     `json:"notes,omitempty"`
	Passed  time.Time  `json:"passed,omitzero"` // the last time
	Due     *time.Time `json:"due,omitempty"`   // null: now, it has never passed
	Overdue bool       `json:"overdue"`
}

func (a *app) planTestsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "tests [PLAN]",
		Short: "Show what the last test failover of every machine came to, and when the next is due",
		Long: "Show what the last test failover of every machine came to, of all machines or of those of a plan. A machine is due again half a year\n" +
			"after a test of it has passed; one that never passed a test is due now.",
		Example: "  drover plan tests\n  drover plan tests shop --json",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			lines, err := a.tests(cmd.Context(), args, time.Now())
			if err != nil {
				return err
			}
			return a.print(lines, func(w io.Writer) { printTests(w, lines) })
		},
	}
}

func (a *app) tests(ctx context.Context, args []string, now time.Time) ([]testLine, error) {
	v, err := a.vault(ctx)
	if err != nil {
		return nil, err
	}
	members := v.Machines
	if len(args) == 1 {
		if members, err = ofPlan(v, args[0]); err != nil {
			return nil, err
		}
	}
	out := []testLine{}
	for _, m := range members {
		s, err := query[api.MachineStatus](ctx, a, api.MachineWorkflowID(m.Machine))
		if err != nil {
			return nil, err
		}
		out = append(out, lineOfTest(s, now))
	}
	return out, nil
}

// ofPlan are the protected machines that the plan names.
func ofPlan(v api.VaultStatus, name string) (members []api.VaultMember, err error) {
	for _, p := range v.Plans {
		if p.Plan.Name != name {
			continue
		}
		for _, g := range p.Plan.Groups {
			for _, pm := range g.Machines {
				m, err := memberOf(v, pm.Name)
				if err != nil {
					return nil, err
				}
				members = append(members, m)
			}
		}
		return members, nil
	}
	return nil, unknownPlan(name)
}

func lineOfTest(s api.MachineStatus, now time.Time) testLine {
	line := testLine{Machine: s.Name, Plans: s.Plans, Verdict: "never tested", Overdue: true}
	if s.Test != nil {
		line.Tested, line.Verdict, line.Notes, line.Passed = s.Test.Started, s.Test.Verdict, s.Test.Notes, s.Test.Passed
	}
	if due := s.TestDue(); !due.IsZero() {
		line.Due, line.Overdue = &due, due.Before(now)
	}
	return line
}

func printTests(w io.Writer, lines []testLine) {
	t := table.NewWriter()
	t.SetOutputMirror(w)
	t.AppendHeader(table.Row{"machine", "tested", "verdict", "passed last", "due", "notes"})
	overdue := 0
	for _, l := range lines {
		due := "now"
		if l.Due != nil {
			due = l.Due.Local().Format(time.DateOnly)
		}
		if l.Overdue {
			overdue++
		}
		t.AppendRow(table.Row{l.Machine, date(l.Tested), firstLine(l.Verdict), date(l.Passed), due, firstLine(l.Notes)})
	}
	t.Render()
	if overdue > 0 {
		_, _ = fmt.Fprintf(w, "%d of %d machines are due for a test: drover plan run PLAN --test\n", overdue, len(lines))
	}
}

func date(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format(time.DateOnly)
}
