package cli

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"drover/datapath/stream"
)

// groupLine is a consistency group on one server.
type groupLine struct {
	Group    string              `json:"group"`
	Server   string              `json:"server"`
	Machines []string            `json:"machines"` // whose policies name it, by name
	Status   *stream.GroupStatus `json:"status"`   // as one of them reports it; null while none streams
}

func (a *app) groupsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "groups", Short: "List the consistency groups: their machines, the newest point in common, who misses it",
		Long: "List the consistency groups: the machines whose policies name them, the newest recovery point that all of them have in\n" +
			"common, and who missed the last round. A group has points in common only on one server: one that is on several is\n" +
			"shown once for each.",
		Example: "  drover groups\n  drover groups --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			lines, err := a.lines(cmd.Context(), nil)
			if err != nil {
				return err
			}
			groups := groupsOf(lines)
			return a.print(groups, func(w io.Writer) { printGroups(w, groups, time.Now()) })
		},
	}
}

// groupsOf gives the groups of machines, by name and server.
func groupsOf(lines []machineLine) []groupLine {
	type key struct{ group, server string }
	found := map[key]*groupLine{}
	for _, l := range lines {
		name := l.Machine.PolicySpec.Group()
		if name == "" {
			continue
		}
		k := key{name, l.Machine.Assignment.Server}
		g := found[k]
		if g == nil {
			g = &groupLine{Group: k.group, Server: k.server}
			found[k] = g
		}
		g.Machines = append(g.Machines, l.Machine.Name)
		if l.Stream != nil && l.Stream.Group != nil && (g.Status == nil || g.Status.Time.Before(l.Stream.Group.Time)) {
			g.Status = l.Stream.Group
		}
	}
	out := []groupLine{}
	for _, g := range found {
		slices.Sort(g.Machines)
		out = append(out, *g)
	}
	slices.SortFunc(out, func(a, b groupLine) int {
		return cmp.Or(strings.Compare(a.Group, b.Group), strings.Compare(a.Server, b.Server))
	})
	return out
}

func printGroups(w io.Writer, groups []groupLine, now time.Time) {
	t := table.NewWriter()
	t.SetOutputMirror(w)
	t.AppendHeader(table.Row{"group", "server", "machines", "newest point in common", "missed"})
	for i, g := range groups {
		last, missed := "-", ""
		if s := g.Status; s != nil {
			if !s.Time.IsZero() {
				last = fmt.Sprintf("%s ago (%s)", age(now, s.Time), s.Round)
			}
			missed = strings.Join(missing(s), "\n")
		}
		t.AppendRow(table.Row{g.Group, g.Server, strings.Join(g.Machines, "\n"), last, missed})
		if i > 0 && groups[i-1].Group == g.Group {
			defer func() {
				_, _ = fmt.Fprintf(w, "group %s is on several servers: only the machines of one server have points in common\n", g.Group)
			}()
		}
	}
	t.Render()
}

// missing names who missed the last round.
func missing(s *stream.GroupStatus) (out []string) {
	for _, m := range s.Missed {
		out = append(out, m.String())
	}
	if s.Others > 0 {
		out = append(out, fmt.Sprintf("and %d more", s.Others))
	}
	return out
}

// printGroup shows the group of one machine.
func printGroup(w io.Writer, s *stream.Status) {
	if s == nil || s.Group == nil {
		return
	}
	g := s.Group
	last := "no point in common yet"
	if !g.Time.IsZero() {
		last = fmt.Sprintf("the newest point in common is of %s, round %s", g.Time.Local().Format(time.DateTime), g.Round)
	}
	_, _ = fmt.Fprintf(w, "consistency group %s, %d machines: %s\n", g.Name, g.Members, last)
	for _, m := range missing(g) {
		_, _ = fmt.Fprintf(w, "  missed the last round: %s\n", m)
	}
}
