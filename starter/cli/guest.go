package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jedib0t/go-pretty/v6/table"
	"go.temporal.io/sdk/client"

	"drover/datapath/ident"
	"drover/workflows/api"
)

const agentsTimeout = time.Minute

// agents asks what the agents of machines said last, protected or not.
func (a *app) agents(ctx context.Context, machines []ident.MachineID) (map[ident.MachineID]api.AgentReport, error) {
	ctx, cancel := context.WithTimeout(ctx, agentsTimeout)
	defer cancel()
	out := map[ident.MachineID]api.AgentReport{}
	for len(machines) > 0 {
		in := api.ListAgentsInput{Machines: machines[:min(len(machines), api.MaxAgentsAsked)]}
		got, err := ask[api.ListAgentsResult](ctx, a, agentsTimeout, client.StartWorkflowOptions{ID: "agents-" + uuid.NewString()}, api.WorkflowListAgents, in)
		if err != nil {
			return nil, err
		}
		if got.Looked <= 0 {
			return nil, fmt.Errorf("the configuration server looked at none of %d machines", len(in.Machines))
		}
		for _, r := range got.Reports {
			out[r.Machine] = r
		}
		machines = machines[got.Looked:]
	}
	return out, nil
}

// preflightWord sums the findings of a guest up.
func preflightWord(findings []api.Finding) string {
	if len(findings) == 0 {
		return "-"
	}
	fail, warn := count(findings, api.LevelFail), count(findings, api.LevelWarn)
	switch {
	case fail == 0 && warn == 0:
		return "ok"
	case fail == 0:
		return fmt.Sprintf("%d warn", warn)
	}
	return fmt.Sprintf("%d fail, %d warn", fail, warn)
}

func count(findings []api.Finding, level string) (n int) {
	for _, f := range findings {
		if f.Level == level {
			n++
		}
	}
	return n
}

// printAgent says who reports, from what.
func printAgent(w io.Writer, r *api.AgentReport) {
	if r == nil {
		_, _ = fmt.Fprintln(w, "agent: it has not reported yet")
		return
	}
	_, _ = fmt.Fprintf(w, "agent %s on %s (%s), as it reported at %s\n", orDash(r.Version), orDash(r.Hostname),
		strings.Trim(r.OS+", kernel "+r.Kernel, ", "), r.LastSeen.Local().Format(time.DateTime))
	if r.Tracker != "" {
		_, _ = fmt.Fprintf(w, "changes are found by: %s\n", r.Tracker)
	}
}

// printDisks lists the disks of a guest with what becomes of them.
func printDisks(w io.Writer, disks []api.GuestDisk, truncated bool) {
	if len(disks) == 0 {
		return
	}
	t := table.NewWriter()
	t.SetOutputMirror(w)
	t.AppendHeader(table.Row{"disk", "device", "size", "state", "holds"})
	for _, d := range disks {
		state := string(d.State)
		if d.ProtectedSize != 0 && d.ProtectedSize != d.Size {
			state += " (" + size(d.ProtectedSize) + " are protected)"
		}
		t.AppendRow(table.Row{cmp.Or(d.Label, d.Model, "-"), orDash(strings.Join(slices.Concat([]string{d.Path}, d.Paths), "\n")), size(d.Size), state, strings.Join(holds(d.Parts), "\n")})
	}
	t.Render()
	for _, d := range disks {
		if d.Why != "" && d.State != api.DiskProtected && d.State != api.DiskExcluded {
			_, _ = fmt.Fprintf(w, "%s: %s\n", cmp.Or(d.Label, d.Path), d.Why)
		}
	}
	if truncated {
		_, _ = fmt.Fprintln(w, "there is more than an agent reports; `drover-agent status` in the guest shows all")
	}
}

// holds says what lies on a disk: a layer after the other, with what it is for.
func holds(parts []api.AgentPart) []string {
	var out []string
	for _, p := range parts {
		words := []string{p.Name}
		if p.Kind != "partition" && p.Kind != "disk" {
			words = append(words, p.Kind)
		}
		if len(p.On) > 0 && p.Kind != "partition" {
			words = append(words, "on "+strings.Join(p.On, ", "))
		}
		if p.FileSystem != "" {
			words = append(words, p.FileSystem)
		}
		if p.Swap && p.FileSystem != "swap" {
			words = append(words, "swap")
		}
		out = append(out, strings.Join(append(words, p.Mounts...), " "))
	}
	return out
}

// printPreflight says whether the guest would boot in the target, what is wrong first.
func printPreflight(w io.Writer, findings []api.Finding) {
	if len(findings) == 0 {
		return
	}
	if preflightWord(findings) == "ok" {
		_, _ = fmt.Fprintf(w, "would it boot in the target? nothing speaks against it (%d checks)\n", len(findings))
		return
	}
	_, _ = fmt.Fprintf(w, "would it boot in the target? %s of %d checks; nothing is blocked by it\n", preflightWord(findings), len(findings))
	for _, f := range worstFirst(findings) {
		_, _ = fmt.Fprintf(w, "  %s %s: %s\n", strings.ToUpper(f.Level), f.Check, f.What)
		if f.Advice != "" {
			_, _ = fmt.Fprintf(w, "       %s\n", f.Advice)
		}
	}
}

// worstFirst are the findings that say that something is wrong: what fails, then what warns.
func worstFirst(findings []api.Finding) (out []api.Finding) {
	for _, level := range []string{api.LevelFail, api.LevelWarn} {
		for _, f := range findings {
			if f.Level == level {
				out = append(out, f)
			}
		}
	}
	return out
}

// against are the findings that speak against a guest's boot in the target, each in a line.
func against(findings []api.Finding) (out []string) {
	for _, f := range worstFirst(findings) {
		line := fmt.Sprintf("%s %s: %s", strings.ToUpper(f.Level), f.Check, f.What)
		if f.Advice != "" {
			line += "; " + f.Advice
		}
		out = append(out, line)
	}
	return out
}

func orDash(s string) string { return cmp.Or(s, "-") }
