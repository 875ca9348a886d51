package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	enums "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/api/serviceerror"

	"drover/starter/evidence"
)

// maxHistory bounds the events of a run that are read.
const maxHistory = 100_000

// Files of a pack in its directory.
const (
	evidencePage    = "evidence.md"
	evidenceFile    = "evidence.json"
	evidenceHistory = "history.json"
)

func (a *app) evidenceCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "evidence RUN|PLAN",
		Short: "Prove what a run of a plan did: who decided, what ran, RPO and RTO against their goals",
		Long: "Prove what a run of a plan did, from the run's workflow history: who asked for it and decided what, which steps ran\n" +
			"and when, and the RPO and RTO of every machine against the policy's threshold and the plan's goal.\n" +
			"Of a plan, its newest run is meant. It is printed as Markdown, or as JSON with --json. With --dir both are written into a\n" +
			"new directory, beside the history they were made from.",
		Example: "  drover evidence shop\n  drover evidence plan-shop-7 --dir drill-november",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.connect(cmd.Context()); err != nil {
				return err
			}
			id, h, err := a.planHistory(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			pack, raw, err := evidence.Read(id, h)
			if err != nil {
				return err
			}
			if dir == "" {
				return a.print(pack, func(w io.Writer) { _ = pack.Markdown(w) })
			}
			if err := writeEvidence(dir, pack, raw); err != nil {
				return fmt.Errorf("write the evidence of %s: %w", id, err)
			}
			return a.print(pack, func(w io.Writer) {
				_, _ = fmt.Fprintf(w, "%s, %s, %s: evidence in %s\n", id, pack.Input.Kind, pack.State, filepath.Join(dir, evidencePage))
				for _, missed := range pack.Missed() {
					_, _ = fmt.Fprintln(w, "missed", missed)
				}
			})
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "directory to make, and to write "+evidencePage+", "+evidenceFile+" and "+evidenceHistory+" into")
	return cmd
}

// planHistory reads the history of a run, or of a plan's newest one.
func (a *app) planHistory(ctx context.Context, name string) (string, *historypb.History, error) {
	h, err := a.history(ctx, name)
	var absent *serviceerror.NotFound
	if !errors.As(err, &absent) {
		return name, h, err
	}
	run, err := a.newestRun(ctx, name)
	if err != nil {
		return "", nil, err
	}
	h, err = a.history(ctx, run)
	return run, h, err
}

func (a *app) history(ctx context.Context, id string) (*historypb.History, error) {
	ctx, cancel := context.WithTimeout(ctx, updateTimeout)
	defer cancel()
	h := &historypb.History{}
	events := a.client.GetWorkflowHistory(ctx, id, "", false, enums.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	for events.HasNext() {
		e, err := events.Next()
		if err != nil {
			return nil, err
		}
		if len(h.Events) == maxHistory {
			return nil, fmt.Errorf("the history of %s has more than %d events", id, maxHistory)
		}
		h.Events = append(h.Events, e)
	}
	return h, nil
}

// writeEvidence makes the directory and writes the pack; one that is there is not touched.
func writeEvidence(dir string, pack *evidence.Pack, history []byte) error {
	if err := os.Mkdir(dir, 0o750); err != nil {
		if errors.Is(err, os.ErrExist) {
			return fmt.Errorf("%s is there already: name a new directory", dir)
		}
		return err
	}
	pack.History.File = evidenceHistory
	text, err := json.MarshalIndent(pack, "", "  ")
	if err != nil {
		return err
	}
	page, err := os.OpenFile(filepath.Join(dir, evidencePage), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640) //nolint:gosec // named by the operator
	if err != nil {
		return err
	}
	return errors.Join(pack.Markdown(page), page.Close(),
		os.WriteFile(filepath.Join(dir, evidenceFile), append(text, '\n'), 0o640), //nolint:gosec // for auditors too
		os.WriteFile(filepath.Join(dir, evidenceHistory), history, 0o640))         //nolint:gosec // for auditors too
}
