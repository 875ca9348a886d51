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

	"drover/workflows/api"
)

const vcenterCheckTimeout = 5 * time.Minute

func (a *app) vcenterCheckCommand() *cobra.Command {
	var functions []string
	cmd := &cobra.Command{
		Use:   "check NAME",
		Short: "Say which privileges Drover's user lacks in a vCenter, and on what",
		Long: "Ask a vCenter which privileges Drover's user lacks for each function, and on which objects. Nothing is changed.\n" +
			"Functions: " + strings.Join(api.VCenterFunctions, ", ") + ". Exit code 1 when something is missing.",
		Example: "  drover vcenter check vc-1\n  drover vcenter check vc-1 --for discover,failover",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.connect(cmd.Context()); err != nil {
				return err
			}
			out, err := a.checkVCenter(cmd.Context(), api.CheckVCenterInput{VCenter: args[0], Functions: functions})
			if err != nil {
				return err
			}
			if err := a.print(out, func(w io.Writer) { printMissing(w, out) }); err != nil {
				return err
			}
			if n := len(out.Missing); n > 0 {
				return fmt.Errorf("%s lacks %d privileges in %s; docs/vsphere.md has the role to give it", out.User, n, args[0])
			}
			return nil
		},
	}
	cmd.Flags().StringSliceVar(&functions, "for", api.VCenterFunctions, "functions to check")
	return cmd
}

func (a *app) checkVCenter(ctx context.Context, in api.CheckVCenterInput) (api.VCenterCheck, error) {
	return ask[api.VCenterCheck](ctx, a, vcenterCheckTimeout, client.StartWorkflowOptions{ID: "check-vcenter-" + uuid.NewString()}, api.WorkflowCheckVCenter, in)
}

func printMissing(w io.Writer, c api.VCenterCheck) {
	_, _ = fmt.Fprintf(w, "%s, user %s, %d objects\n", c.Version, c.User, c.Objects)
	if len(c.Missing) == 0 {
		_, _ = fmt.Fprintln(w, "no privilege is missing")
		return
	}
	t := table.NewWriter()
	t.SetOutputMirror(w)
	t.AppendHeader(table.Row{"function", "privilege", "missing on"})
	for _, m := range c.Missing {
		on := strings.Join(m.On, ", ")
		switch {
		case m.Count == m.Of && m.Of > 1:
			on = fmt.Sprintf("all %d of %s", m.Of, m.Kind)
		case m.Count > len(m.On):
			on += fmt.Sprintf(" and %d more", m.Count-len(m.On))
		}
		t.AppendRow(table.Row{m.Function, m.Privilege, on})
	}
	t.Render()
}
