package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"drover/agent/config"
	"drover/agent/controlapi"
	"drover/agent/doctor"
	"drover/agent/proxy"
	"drover/agent/status"
)

// errUnwell is what doctor ends with when a check failed; the checks are printed already.
var errUnwell = errors.New("something is wrong; see the lines with FAIL")

func statusCommand() *cobra.Command {
	var file, socket string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what the running agent does",
		Long: "Show what the running agent does: who it is, whom it serves, the last recovery point, its\n" +
			"disks, and what is wrong. It asks the agent on its socket, which root alone can reach.",
		Example: "  drover-agent status\n  drover-agent status --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if socket == "" {
				socket = status.DefaultSocket()
				if c, err := config.Load(file); err == nil {
					socket = c.Socket
				}
			}
			st, err := status.Get(cmd.Context(), socket)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), st)
			}
			return printStatus(cmd.OutOrStdout(), st)
		},
	}
	configFlag(cmd, &file)
	cmd.Flags().StringVar(&socket, "socket", "", "the agent's socket (default: the configuration's)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// printStatus prints what a person wants to know, problems first.
func printStatus(out io.Writer, st status.Status) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { _, _ = fmt.Fprintf(w, name+"\t"+format+"\n", args...) } // Flush tells of errors
	row("State", "%s", strings.TrimSuffix(st.State+": "+st.Detail, ": "))
	for _, p := range st.Problems {
		if p != st.Detail {
			row("Problem", "%s", p)
		}
	}
	row("Agent", "%s, process %d, since %s", st.Version, st.PID, when(st.Started))
	if id := st.Identity; id.Name == "" {
		row("Identity", "none yet")
	} else {
		row("Identity", "%s, certificate until %s, renewed at %s", id.Name, when(id.Expires), when(id.RenewAt))
	}
	row("Instance", "%s", st.Instance)
	control := "has not answered yet"
	if !st.Control.LastAnswer.IsZero() {
		control = fmt.Sprintf("answered %s ago, its clock is %+.1f s off ours", st.Time.Sub(st.Control.LastAnswer).Round(time.Second), st.Control.Offset)
	}
	row("Control", "%s %s", st.Control.Server, control)
	if st.Control.Error != "" {
		row("", "%s", st.Control.Error)
	}
	if as := st.Assignment; as != nil {
		what := string(as.Action)
		if as.Action == controlapi.ActionReplicate {
			what += fmt.Sprintf(" to %s at %s, epoch %d", as.Server, as.Address, as.Epoch)
		}
		row("Assignment", "%s", strings.TrimSuffix(what+": "+as.Reason, ": "))
	}
	if st.Position != "" {
		row("Position", "%s; safe up to %s", st.Position, st.Stored)
	}
	row("Tracker", "%s", st.Tracker)
	if c := st.LastCut; c != nil {
		row("Last point", "%s, %s, frozen for %.0f ms %s", when(c.Time), c.Consistency, c.Freeze*1000, c.Note)
	}
	row("Limits", "memory %d MiB, reads %s, waited %.0f s for the guest's sake %s", st.Limits.Memory>>20, rate(st.Limits.ReadRate), st.Limits.Paused, st.Limits.Pressure)
	printDisks(row, st.Disks)
	names := make([]string, 0, len(st.Counters))
	for name := range st.Counters {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		row("Counter", "%s = %.0f", name, st.Counters[name])
	}
	for _, f := range st.Preflight {
		if f.Level != controlapi.LevelOK {
			row("Target", "%s: %s", f.What, f.Advice)
		}
	}
	return w.Flush()
}

func printDisks(row func(string, string, ...any), disks []controlapi.InventoryDisk) {
	for _, d := range disks {
		what := "protected"
		if !d.Protected {
			what = "not protected"
		}
		row("Disk", "%s, %d MiB, %s", d.Path, d.Size>>20, strings.TrimSuffix(what+": "+d.Why, ": "))
		for _, p := range d.Parts {
			use := p.FileSystem
			if p.Swap {
				use = "swap"
			}
			if len(p.Mounts) > 0 {
				use += " on " + strings.Join(p.Mounts, ", ")
			}
			row("", "  %s (%s), %d MiB %s", p.Name, p.Kind, p.Size>>20, use)
		}
	}
}

func when(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func rate(n int64) string {
	if n == 0 {
		return "unlimited"
	}
	return fmt.Sprintf("at most %.1f MiB/s", float64(n)/(1<<20))
}

func doctorCommand() *cobra.Command {
	var file string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check everything the agent needs, and say what to do",
		Long: "Check configuration, certificate, servers, clock, disks, file systems, tracking, memory and\n" +
			"programs, whether or not the agent runs, and whether this guest would boot in the target.\n" +
			"It changes nothing. The exit code is 1 when a check failed; warnings leave it at 0.",
		Example: "  drover-agent doctor\n  drover-agent doctor --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.Load(file)
			o := doctor.Options{File: file, Config: c, Err: err}
			if err == nil {
				dial, err := proxy.Dialer(c.Proxy)
				if err != nil {
					return err
				}
				o.Dial = dial
			}
			all := doctor.Examine(cmd.Context(), o)
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), all)
			} else {
				err = printFindings(cmd.OutOrStdout(), all)
			}
			if err == nil && doctor.Failed(all) {
				err = errUnwell
			}
			return err
		},
	}
	configFlag(cmd, &file)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printFindings(out io.Writer, all []controlapi.Finding) error {
	for _, f := range all {
		text := fmt.Sprintf("%-4s  %-20s  %s\n", strings.ToUpper(f.Level), f.Check, f.What)
		if f.Advice != "" {
			text += fmt.Sprintf("%-4s  %-20s  -> %s\n", "", "", f.Advice)
		}
		if _, err := io.WriteString(out, text); err != nil {
			return err
		}
	}
	return nil
}
