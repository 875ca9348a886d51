package cli

import (
	"fmt"
	"io"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	enums "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"

	"drover/starter/spec"
	"drover/workflows/api"
)

func (a *app) policyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Replication policies", Example: "  drover policy apply -f gold.yaml\n  drover policy list"}
	cmd.AddCommand(a.policyApplyCommand(), a.policyListCommand(), a.policyResyncCommand())
	return cmd
}

func (a *app) policyApplyCommand() *cobra.Command {
	return a.applyCommand("policy", "gold.yaml", "The machines of a changed policy follow\nby themselves, while they replicate; those in the middle of an action follow when it ends.",
		func(file string) (document, error) {
			p, err := spec.ReadPolicy(file)
			return document{p.Name, api.VaultApplyPolicy, api.ApplyPolicy{Policy: p, By: by()}, nil}, err
		})
}

func (a *app) policyListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the policies", Example: "  drover policy list", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, err := a.vault(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(v.Policies, func(w io.Writer) {
				t := table.NewWriter()
				t.SetOutputMirror(w)
				t.AppendHeader(table.Row{"policy", "cut every", "group", "RPO threshold", "points kept", "resync", "applied"})
				for _, p := range v.Policies {
					t.AppendRow(table.Row{p.Policy.Name, p.Policy.CutInterval, p.Policy.Group(), p.Policy.RPOThreshold, p.Policy.Retention.Keep, resyncWord(p.Policy.Resync), p.Applied.Format(time.RFC3339)})
				}
				t.Render()
			})
		},
	}
}

func (a *app) policyResyncCommand() *cobra.Command {
	return &cobra.Command{
		Use: "resync POLICY", Short: "Resynchronise all machines of a policy that are marked for it, now",
		Long: "Resynchronise all machines of a policy that are marked for it, now and outside the window too, so many at once per process\n" +
			"server as the policy says. Interrupted, it stops waiting and the resyncs go on; cancelling the workflow stops them.",
		Example: "  drover policy resync gold", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := a.policyNamed(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			run, err := a.client.ExecuteWorkflow(cmd.Context(), client.StartWorkflowOptions{
				ID: "resync-now-" + p.Policy.Name, TaskQueue: api.ControlQueue, WorkflowIDConflictPolicy: enums.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING,
			}, api.WorkflowResyncWindow, api.ResyncWindowInput{Policy: p.Policy.Name, Now: true})
			if err != nil {
				return err
			}
			a.note("workflow %s", run.GetID())
			var out api.ResyncWindowResult
			if err := run.Get(cmd.Context(), &out); err != nil {
				return err
			}
			return a.print(out, func(w io.Writer) { _, _ = fmt.Fprintln(w, out.Message) })
		},
	}
}

// resyncWord says when the machines of a policy are resynchronised.
func resyncWord(r api.ResyncPolicy) string {
	switch {
	case !r.Automatic:
		return "by hand"
	case r.Window.Start == "":
		return "at any time"
	}
	return r.Window.Start + " to " + r.Window.End + " " + r.Window.TimeZone
}
