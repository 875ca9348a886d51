package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"drover/workflows/api"
)

func (a *app) setPolicyCommand() *cobra.Command {
	return &cobra.Command{
		Use: "set-policy VM POLICY", Short: "Let a machine replicate under another policy",
		Example: "  drover set-policy db-1 gold",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := a.policyNamed(cmd.Context(), args[1])
			if err != nil {
				return err
			}
			return a.act(cmd.Context(), args[0], api.ActionSetPolicy, api.ActionRequest{Policy: &p.Policy, PolicyHash: p.Hash})
		},
	}
}

// policyNamed reads a policy from the vault.
func (a *app) policyNamed(ctx context.Context, name string) (api.StoredPolicy, error) {
	v, err := a.vault(ctx)
	if err != nil {
		return api.StoredPolicy{}, err
	}
	for _, p := range v.Policies {
		if p.Policy.Name == name {
			return p, nil
		}
	}
	return api.StoredPolicy{}, &notFoundError{fmt.Errorf("no policy %q; `drover policy list` lists them, `drover policy apply -f FILE` adds one", name)}
}
