package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"drover/starter/spec"
	"drover/workflows/api"
)

// document is what a file holds for the vault: its name, the vault's update that
// takes it, and the update's input.
type document struct {
	name, update string
	input        any
	// check says what the server knows to be wrong with it, beyond the file; nil checks nothing.
	check func(context.Context) ([]api.FieldError, error)
}

// applyCommand keeps a file's policy or plan in the vault.
func (a *app) applyCommand(noun, example, more string, read func(file string) (document, error)) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Keep a " + noun + " in the vault, new or changed",
		Long: "Keep a " + noun + " in the vault, new or changed. The file is checked as a whole first; what is\n" +
			"wrong is told with file and line. " + more,
		Example: "  drover " + noun + " apply -f " + example,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return &usageError{errors.New("-f FILE is missing")}
			}
			d, err := read(file)
			if err != nil {
				return err
			}
			if err := a.connect(cmd.Context()); err != nil {
				return err
			}
			if d.check != nil {
				wrong, err := d.check(cmd.Context())
				if err = errors.Join(err, spec.Locate(file, wrong)); err != nil {
					return err
				}
			}
			r, err := update[api.ApplyResult](cmd.Context(), a, api.VaultID, d.update, d.input)
			if err != nil {
				return err
			}
			return a.print(r, func(w io.Writer) { _, _ = fmt.Fprintf(w, "%s %s: %s\n", noun, d.name, r.Message) })
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "YAML file")
	return cmd
}
