package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	enums "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"

	"drover/datapath/stream"
	"drover/datapath/throttle"
	"drover/workflows/api"
)

// told is how far a comparison must have come for another line about it, in percent.
const told = 5

// verifyFlags are the flags of verify.
type verifyFlags struct {
	deep, cancel bool
	rate, record string
}

func (a *app) verifyCommand() *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use:   "verify VM",
		Short: "Compare a machine's source with its replica while it replicates",
		Long: "Compare a machine's source with its replica while it replicates, and have what differs sent again.\n" +
			"The agent reads its disks and asks the server for checksums; what is on its way is no difference.\n" +
			"With --deep the server reads the stored bytes back, which finds what has rotted there; else it trusts its map of checksums.\n" +
			"The result is a record, signed by the server and bound to a recovery point; drover-recover checks it.\n\n" +
			"Verdicts: equal; unsettled (nothing differed, but some blocks were written too often to be compared);\n" +
			"mended (some differed, were sent again, and are equal now); different (the machine is marked for resync, exit code 7).\n\n" +
			"One comparison of a machine runs at a time: a second verify joins it. Interrupted, this command stops waiting and the\n" +
			"comparison goes on; --cancel ends it.",
		Example: "  drover verify db-1\n  drover verify db-1 --deep --rate 50MiB/s --record db-1.json\n  drover verify db-1 --cancel",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			rate, err := parseRate(f.rate)
			if err != nil {
				return &usageError{err}
			}
			if _, err := os.Stat(filepath.Dir(f.record)); err != nil {
				return &usageError{fmt.Errorf("--record: %w", err)}
			}
			if f.cancel {
				return a.cancelVerify(cmd.Context(), args[0])
			}
			return a.verify(cmd.Context(), args[0], f, rate)
		},
	}
	cmd.Flags().BoolVar(&f.deep, "deep", false, "read the stored bytes back instead of trusting the store's map of checksums")
	cmd.Flags().StringVar(&f.rate, "rate", "", "how fast the source's disks are read at most, e.g. 50MiB/s (default: no limit)")
	cmd.Flags().StringVar(&f.record, "record", "", "write the signed record to this file")
	cmd.Flags().BoolVar(&f.cancel, "cancel", false, "end the comparison that runs")
	return cmd
}

// parseRate reads a rate like 50MiB/s; empty is no bound.
func parseRate(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	var r throttle.Rate
	if err := r.UnmarshalText([]byte(s)); err != nil {
		return 0, fmt.Errorf("--rate: %w", err)
	}
	if r < stream.MinVerifyRate {
		return 0, fmt.Errorf("--rate %s: want at least %s", s, throttle.Rate(stream.MinVerifyRate))
	}
	return int64(r), nil
}

func (a *app) verify(ctx context.Context, name string, f verifyFlags, rate int64) error {
	m, err := a.member(ctx, name)
	if err != nil {
		return err
	}
	id := api.VerifyWorkflowID(m.Machine)
	status, err := query[api.MachineStatus](ctx, a, api.MachineWorkflowID(m.Machine))
	if err != nil {
		return err
	}
	if status.State != api.StateProtected && status.State != api.StateProtectedReverse {
		return temporal.NewNonRetryableApplicationError(
			fmt.Sprintf("%s is %s; a machine can be compared while it is %s or %s", m.Name, status.State, api.StateProtected, api.StateProtectedReverse), api.CodeNotInState, nil)
	}
	run, err := a.client.ExecuteWorkflow(ctx, client.StartWorkflowOptions{
		ID: id, TaskQueue: api.ControlQueue, WorkflowIDConflictPolicy: enums.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING,
	}, api.WorkflowVerify, api.VerifyInput{
		Machine: m.Machine, Name: m.Name, Epoch: status.Assignment.Epoch, Server: status.Assignment.Server, Deep: f.deep, Rate: rate, By: by(),
	})
	if err != nil {
		return err
	}
	running, err := query[api.VerifyInput](ctx, a, id)
	if err != nil {
		return err
	}
	if running.Deep != f.deep {
		return temporal.NewNonRetryableApplicationError(fmt.Sprintf("a comparison of %s is running (asked for by %s) that is not of this depth; wait for its end, or end it: drover verify %s --cancel",
			m.Name, running.By, m.Name), api.CodeBusy, nil)
	}
	return a.awaitVerify(ctx, run, m.Name, f.record)
}

// awaitVerify waits for the record and shows it.
func (a *app) awaitVerify(ctx context.Context, run client.WorkflowRun, name, file string) error {
	watch, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); a.narrateVerify(watch, run.GetID(), name) }()
	var signed stream.SignedRecord
	err := run.Get(ctx, &signed)
	stop()
	<-done
	if err != nil {
		if errors.Is(ctx.Err(), context.Canceled) {
			return fmt.Errorf("no longer waiting; the comparison of %[1]s goes on: drover verify %[1]s joins it, with --cancel it ends", name)
		}
		var cancelled *temporal.CanceledError
		if errors.As(err, &cancelled) {
			return fmt.Errorf("the comparison of %s was cancelled", name)
		}
		return err
	}
	var record stream.Record
	if err := json.Unmarshal(signed.Record, &record); err != nil {
		return fmt.Errorf("read the record of %s: %w", name, err)
	}
	if file != "" {
		if err := writeRecord(file, signed); err != nil {
			return err
		}
		a.note("the signed record is in %s", file)
	}
	if err := a.print(signed, func(w io.Writer) { printRecord(w, record) }); err != nil {
		return err
	}
	switch record.Verdict {
	case stream.VerdictEqual, stream.VerdictMended, stream.VerdictUnsettled:
		return nil
	}
	return &differsError{name}
}

// writeRecord writes the file whole or not at all.
func writeRecord(path string, signed stream.SignedRecord) error {
	text, err := json.MarshalIndent(signed, "", "  ")
	if err != nil {
		return fmt.Errorf("write the record: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".record-*")
	if err != nil {
		return fmt.Errorf("write the record: %w", err)
	}
	_, err = f.Write(append(text, '\n'))
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write the record: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}

// narrateVerify tells how far the comparison is, and what it waits for, until the
// context ends.
func (a *app) narrateVerify(ctx context.Context, id, name string) {
	var last string
	next := int64(0)
	for {
		if s, err := a.heartbeat(ctx, id); err == nil && s != nil && s.Verify != nil && s.Verify.Total > 0 {
			v := s.Verify
			percent := 100 * v.Done / v.Total
			if line := fmt.Sprintf("waits for %s", v.Waits); v.Done == v.Total && line != last || percent >= next {
				last, next = line, percent+told
				a.note("%s: %d %% of %s compared; it %s", name, percent, size(v.Total), line)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(progressPause):
		}
	}
}

func (a *app) cancelVerify(ctx context.Context, name string) error {
	m, err := a.member(ctx, name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	id := api.VerifyWorkflowID(m.Machine)
	d, err := a.client.DescribeWorkflowExecution(ctx, id, "")
	if err == nil && d.GetWorkflowExecutionInfo().GetStatus() == enums.WORKFLOW_EXECUTION_STATUS_RUNNING {
		err = a.client.CancelWorkflow(ctx, id, d.GetWorkflowExecutionInfo().GetExecution().GetRunId())
	} else if err == nil { // an old one: cancelling it would be taken without a word
		err = serviceerror.NewNotFound("it is over")
	}
	var absent *serviceerror.NotFound
	if errors.As(err, &absent) {
		return &notFoundError{fmt.Errorf("no comparison of %s is running", m.Name)}
	}
	if err != nil {
		return err
	}
	return a.print(map[string]string{"cancelled": m.Name}, func(w io.Writer) { _, _ = fmt.Fprintf(w, "the comparison of %s ends\n", m.Name) })
}

func printRecord(w io.Writer, r stream.Record) {
	depth := "by the store's map of checksums"
	if r.Deep {
		depth = "by the stored bytes"
	}
	_, _ = fmt.Fprintf(w, "%s: %s, as of recovery point %d of %s (%s-consistent), %s, in %s\n", r.Name, r.Verdict, r.Point,
		r.PointTime.Local().Format(time.DateTime), r.Consistency, depth, r.Finished.Sub(r.Started).Round(100*time.Millisecond))
	t := table.NewWriter()
	t.SetOutputMirror(w)
	t.AppendHeader(table.Row{"disk", "size", "differed", "mended", "busy", "free, not compared", "first differences at", "digest"})
	for _, d := range r.Disks {
		first := make([]string, len(d.First))
		for i, off := range d.First {
			first[i] = fmt.Sprint(off)
		}
		t.AppendRow(table.Row{d.Name, size(d.Size), size(d.Differed), size(d.Mended), size(d.Busy), size(d.Free), strings.Join(first, "\n"), d.Digest.String()[:16]})
	}
	t.Render()
}

// printComparisons shows the comparison that runs, and what the newest one came to.
func printComparisons(w io.Writer, s *stream.Status) {
	if s == nil {
		return
	}
	if v := s.Verify; v != nil {
		_, _ = fmt.Fprintf(w, "is compared with its replica since %s: %s of %s, waits for %s\n", v.Started.Local().Format(time.DateTime), size(v.Done), size(v.Total), v.Waits)
	}
	if v := s.Verified; v != nil {
		depth := ""
		if v.Deep {
			depth = ", deep"
		}
		_, _ = fmt.Fprintf(w, "compared with its replica at %s%s: %s, as of recovery point %d of %s; %s differed\n", v.Finished.Local().Format(time.DateTime), depth,
			v.Verdict, v.Point, v.PointTime.Local().Format(time.DateTime), size(v.Differed))
	}
}
