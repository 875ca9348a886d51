package cli

import (
	"fmt"
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
	var file string
	cmd := &cobra.Command{
		Use:     "apply -f FILE",
		Short:   "Keep a policy in the vault, new or changed",
		Long:    "Keep a policy in the vault, new or changed. Machines take a changed policy with drover set-policy.",
		Example: "  drover policy apply -f gold.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return &usageError{fmt.Errorf("-f FILE is missing")}
			}
			p, err := spec.ReadPolicy(file)
			if err != nil {
				return err
			}
			if err := a.connect(cmd.Context()); err != nil {
				return err
			}
			r, err := update[api.ApplyResult](cmd.Context(), a, api.VaultID, api.VaultApplyPolicy, api.ApplyPolicy{Policy: p, By: by()})
			if err != nil {
				return err
			}
			return a.print(r, func(w io.Writer) { _, _ = fmt.Fprintf(w, "policy %s: %s\n", p.Name, r.Message) })
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "YAML file")
	return cmd
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
				t.AppendHeader(table.Row{"policy", "cut every", "RPO threshold", "points kept", "applied"})
				for _, p := range v.Policies {
					t.AppendRow(table.Row{p.Policy.Name, p.Policy.CutInterval, p.Policy.RPOThreshold, p.Policy.Retention.Keep, p.Applied.Format(time.RFC3339)})
				}
				t.Render()
			})
		},
	}
}
