package cli

import (
	"io"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"drover/starter/spec"
	"drover/workflows/api"
)

func (a *app) policyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Replication policies", Example: "  drover policy apply -f gold.yaml\n  drover policy list"}
	cmd.AddCommand(a.policyApplyCommand(), a.policyListCommand())
	return cmd
}

func (a *app) policyApplyCommand() *cobra.Command {
	return a.applyCommand("policy", "gold.yaml", "Machines take a changed policy with drover set-policy.",
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
				t.AppendHeader(table.Row{"policy", "cut every", "group", "RPO threshold", "points kept", "applied"})
				for _, p := range v.Policies {
					t.AppendRow(table.Row{p.Policy.Name, p.Policy.CutInterval, p.Policy.Group(), p.Policy.RPOThreshold, p.Policy.Retention.Keep, p.Applied.Format(time.RFC3339)})
				}
				t.Render()
			})
		},
	}
}
