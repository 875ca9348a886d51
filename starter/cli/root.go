// Package cli is the command line `drover`: one file per verb. It speaks to
// Temporal only, by starting workflows, updating, signalling and querying them;
// whatever it does can be done with Temporal's own tools too.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"

	"github.com/spf13/cobra"
	"go.temporal.io/sdk/client"
)

// app is what all verbs share.
type app struct {
	address, namespace string
	json               bool
	out, err           io.Writer
	client             client.Client // after connect
}

// Main runs the command line and gives its exit code.
func Main(ctx context.Context, version string, args []string, out, errOut io.Writer) int {
	a := &app{out: out, err: errOut}
	root := a.root(version)
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.ExecuteContext(ctx)
	if a.client != nil {
		a.client.Close()
	}
	if err == nil {
		return exitOK
	}
	code := exitCode(err)
	var done *waitsError
	if !errors.As(err, &done) || !a.json {
		_, _ = fmt.Fprintln(errOut, "drover:", explain(err))
	}
	return code
}

func (a *app) root(version string) *cobra.Command {
	root := &cobra.Command{
		Use:           "drover",
		Short:         "Disaster recovery you can prove",
		Long:          "drover protects VMs, resynchronises them, fails applications over by a plan and brings them back.\nIt speaks to Temporal; `drover help exit-codes` lists the exit codes.",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	f := root.PersistentFlags()
	f.StringVar(&a.address, "address", fromEnv("TEMPORAL_ADDRESS", client.DefaultHostPort), "Temporal's address (environment: TEMPORAL_ADDRESS)")
	f.StringVar(&a.namespace, "namespace", fromEnv("TEMPORAL_NAMESPACE", client.DefaultNamespace), "Temporal's namespace (environment: TEMPORAL_NAMESPACE)")
	f.BoolVar(&a.json, "json", false, "print JSON for programs")
	root.AddCommand(
		a.vcenterCommand(), a.agentCommand(), a.discoverCommand(), a.policyCommand(), a.protectCommand(), a.statusCommand(), a.serversCommand(), a.groupsCommand(), a.pointsCommand(),
		a.verifyCommand(), a.resyncCommand(), a.pauseCommand(), a.resumeCommand(), a.planCommand(), a.evidenceCommand(),
		a.testFailoverCommand(), a.cleanupCommand(), a.failoverCommand(), a.changePointCommand(), a.commitCommand(), a.rollBackCommand(),
		a.reprotectCommand(), a.failbackCommand(), a.reenableCommand(), a.setPolicyCommand(), a.unprotectCommand(),
		exitCodesTopic(),
	)
	markUsageErrors(root)
	return root
}

// markUsageErrors lets wrong arguments end with the exit code for usage.
func markUsageErrors(cmd *cobra.Command) {
	if args := cmd.Args; args != nil {
		cmd.Args = func(c *cobra.Command, list []string) error {
			if err := args(c, list); err != nil {
				return &usageError{fmt.Errorf("%w\n%s", err, c.UseLine())}
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		markUsageErrors(sub)
	}
}

func fromEnv(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// by names the person who asks.
func by() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return "unknown"
}

// print gives v as JSON, or calls text.
func (a *app) print(v any, text func(io.Writer)) error {
	if !a.json {
		text(a.out)
		return nil
	}
	enc := json.NewEncoder(a.out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// note tells the person something that is not the result.
func (a *app) note(format string, args ...any) {
	if !a.json {
		_, _ = fmt.Fprintf(a.err, format+"\n", args...)
	}
}
