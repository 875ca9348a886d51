package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/converter"

	"drover/datapath/stream"
	"drover/workflows/api"
)

// watchPause is between two pictures of --watch.
const watchPause = 2 * time.Second

// machineLine is a machine with its stream.
type machineLine struct {
	Machine api.MachineStatus `json:"machine"`
	Stream  *stream.Status    `json:"stream"` // null while it does not stream
	// Disks are all disks of the guest, with what becomes of each.
	Disks []api.GuestDisk `json:"disks,omitempty"`
}

func (a *app) statusCommand() *cobra.Command {
	var watch, stages bool
	cmd := &cobra.Command{
		Use:     "status [VM]",
		Short:   "Show the machines: state, health, RPO, recovery points, progress",
		Long:    "Show the machines: state, health, RPO, recovery points, and the progress of every disk while it is copied or compared.\nWith a name, all that is known of that machine: also its agent, how changes are found and why so, all disks of the guest with what\nbecomes of them, and whether the guest would boot in the target (column preflight), with what to do about it.\nWith --waterfall, where the time of every disk's data goes, from being read to being in the replica.",
		Example: "  drover status\n  drover status --watch\n  drover status db-1\n  drover status --waterfall --watch\n  drover status --json",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			show := func(w io.Writer, lines []machineLine) { printStatus(w, lines, time.Now()) }
			if stages {
				before := pictures{}
				show = func(w io.Writer, lines []machineLine) { printWaterfall(w, lines, before) }
			} else if len(args) == 1 {
				show = func(w io.Writer, lines []machineLine) {
					printStatus(w, lines, time.Now())
					for _, l := range lines {
						printDetails(w, l)
					}
				}
			}
			if !watch {
				return a.status(cmd.Context(), args, "", show)
			}
			for {
				if err := a.status(cmd.Context(), args, "\033[H\033[2J", show); err != nil && cmd.Context().Err() == nil {
					return err
				}
				select {
				case <-cmd.Context().Done():
					return nil
				case <-time.After(watchPause):
				}
			}
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show it again and again until interrupted")
	cmd.Flags().BoolVar(&stages, "waterfall", false, "show what each disk's data waits for; with --watch, since the picture before")
	return cmd
}

func (a *app) status(ctx context.Context, args []string, before string, show func(io.Writer, []machineLine)) error {
	lines, err := a.lines(ctx, args)
	if err != nil {
		return err
	}
	return a.print(lines, func(w io.Writer) {
		_, _ = io.WriteString(w, before)
		show(w, lines)
	})
}

// lines asks the machines, or the one that is named, and looks what they report.
func (a *app) lines(ctx context.Context, args []string) ([]machineLine, error) {
	v, err := a.vault(ctx)
	if err != nil {
		return nil, err
	}
	members := v.Machines
	if len(args) == 1 {
		m, err := a.member(ctx, args[0])
		if err != nil {
			return nil, err
		}
		members = []api.VaultMember{m}
	}
	lines := []machineLine{}
	for _, m := range members {
		line, err := a.line(ctx, m)
		var absent *serviceerror.NotFound
		if errors.As(err, &absent) {
			continue // it left in between
		}
		if err != nil {
			return nil, err
		}
		lines = append(lines, line)
	}
	return lines, nil
}

// line asks a machine's entity, and looks what its running activities report.
func (a *app) line(ctx context.Context, m api.VaultMember) (machineLine, error) {
	id := api.MachineWorkflowID(m.Machine)
	status, err := query[api.MachineStatus](ctx, a, id)
	if err != nil {
		return machineLine{}, err
	}
	line := machineLine{Machine: status, Disks: status.GuestDisks()}
	for _, workflow := range []string{status.Child, id} {
		if workflow == "" || line.Stream != nil {
			continue
		}
		if line.Stream, err = a.heartbeat(ctx, workflow); err != nil {
			return line, err
		}
	}
	return line, nil
}

// heartbeat gives the stream's status that a workflow's replication activity
// reported last; nil when none runs.
func (a *app) heartbeat(ctx context.Context, workflow string) (*stream.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	d, err := a.client.DescribeWorkflowExecution(ctx, workflow, "")
	var absent *serviceerror.NotFound
	if errors.As(err, &absent) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, p := range d.GetPendingActivities() {
		name := p.GetActivityType().GetName()
		if name != api.ActReplicate && name != api.ActBase && name != api.ActVerify {
			continue
		}
		var s stream.Status
		if p.GetHeartbeatDetails() != nil && converter.GetDefaultDataConverter().FromPayloads(p.GetHeartbeatDetails(), &s) == nil {
			return &s, nil
		}
	}
	return nil, nil
}

func printStatus(w io.Writer, lines []machineLine, now time.Time) {
	t := table.NewWriter()
	t.SetOutputMirror(w)
	t.AppendHeader(table.Row{"machine", "state", "health", "RPO", "points", "server", "preflight", "doing", "progress"})
	for _, l := range lines {
		m := l.Machine
		rpo, points, preflight := "-", "-", "-"
		if m.Agent != nil {
			preflight = preflightWord(m.Agent.Preflight)
		}
		if l.Stream != nil {
			rpo, points = age(now, l.Stream.StoredTime), fmt.Sprint(l.Stream.Points)
		}
		t.AppendRow(table.Row{m.Name, m.State, m.Health, rpo, points, m.Assignment.Server, preflight, m.Doing, strings.Join(progress(l.Stream), "\n")})
	}
	t.Render()
	for _, l := range lines {
		for _, p := range l.Machine.Problems {
			printProblem(w, l.Machine.Name, p)
		}
	}
}

func printProblem(w io.Writer, machine string, p api.Problem) {
	possible := "not possible"
	if p.Failover {
		possible = "possible"
	}
	_, _ = fmt.Fprintf(w, "%s: %s %s, %s: %s (since %s, failover %s)\n", machine, p.Code, p.Health, p.Component, p.Cause, p.Since.Local().Format(time.DateTime), possible)
	if p.Evidence != "" {
		_, _ = fmt.Fprintf(w, "    evidence: %s\n", p.Evidence)
	}
	_, _ = fmt.Fprintf(w, "    do: %s\n", p.Action)
}

// progress is one line per disk while a base pass runs.
func progress(s *stream.Status) []string {
	if s == nil || s.Complete {
		return nil
	}
	var out []string
	for _, d := range s.Disks {
		part := 0.0
		if d.Size > 0 {
			part = 100 * float64(d.Done) / float64(d.Size)
		}
		out = append(out, fmt.Sprintf("%s %.0f %% of %s, %s sent", d.Name, part, size(d.Size), size(d.Bytes)))
	}
	return out
}

func printDetails(w io.Writer, l machineLine) {
	m := l.Machine
	defer printComparisons(w, l.Stream)
	defer printGroup(w, l.Stream)
	_, _ = fmt.Fprintf(w, "machine %s, policy %s, epoch %d, in this state since %s\n", m.Machine, m.Policy, m.Assignment.Epoch, m.Since.Local().Format(time.DateTime))
	_, _ = fmt.Fprintf(w, "possible now: %s\n", strings.Join(m.Possible, ", "))
	if len(m.VM.Tags) > 0 {
		_, _ = fmt.Fprintf(w, "tags in vCenter: %s\n", strings.Join(tagWords(m.VM), ", "))
	}
	if m.Agent == nil {
		for _, d := range m.Protected {
			_, _ = fmt.Fprintf(w, "disk %s, %s (%s)\n", d.Label, size(d.Size), d.ID)
		}
	}
	printAgent(w, m.Agent)
	if m.Agent != nil {
		printDisks(w, l.Disks, m.Agent.Truncated)
		printPreflight(w, m.Agent.Preflight)
	}
	for _, t := range m.Transfers {
		_, _ = fmt.Fprintf(w, "%s moved %s of data for %s of disk in %s\n", t.Cause, size(t.DataBytes), size(t.DiskBytes), t.Took.D().Round(100*time.Millisecond))
	}
	if m.Test != nil {
		_, _ = fmt.Fprintf(w, "test failover of %s: %s, cleaned up: %t\n", m.Test.Started.Local().Format(time.DateTime), m.Test.Verdict, m.Test.Cleaned)
	}
	if r := m.Remade; r != nil {
		_, _ = fmt.Fprintf(w, "VM made anew: %s in vCenter %s (%s); it is the machine's once it has failed back, instead of %s in %s\n",
			m.VM.Name, r.Made.VCenter, r.Made.InstanceUUID, r.Former.Name, r.Former.VCenter)
	}
	for _, f := range m.Former {
		_, _ = fmt.Fprintf(w, "former VM: %s in vCenter %s (%s), until %s; Drover does not look at it any more: delete it when nobody needs it\n",
			f.Name, f.VCenter, f.InstanceUUID, f.Until.Local().Format(time.DateTime))
	}
	if m.Target != nil {
		_, _ = fmt.Fprintf(w, "target machine %s at %s\n", m.Target.Name, m.Target.Address)
	}
	if m.Refused != nil {
		_, _ = fmt.Fprintf(w, "last refused signal: %s: %s %s\n", m.Refused.Action, m.Refused.Code, m.Refused.Reason)
	}
}
