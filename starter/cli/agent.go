package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	"go.temporal.io/sdk/client"

	"drover/workflows/api"
)

const pushTimeout = 20 * time.Minute

func (a *app) agentCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "agent", Short: "Install, upgrade or remove the agent in a Linux guest over SSH",
		Example: "  drover agent install db-1 --address 10.0.0.7 --credentials guests"}
	cmd.AddCommand(
		a.pushCommand("install", "Install the agent in a guest, or upgrade it", "Install the agent in a Linux guest over SSH, or upgrade it: look whether the guest can have it, copy it, compare the digest,\n"+
			"enrol it with a token for this machine alone, have systemd run it, and show the agent's own checks. Run again it changes\n"+
			"only what is not as it should be."),
		a.pushCommand("remove", "Remove the agent from a guest", "Stop the agent and remove program and unit. Configuration and identity stay."))
	return cmd
}

func (a *app) pushCommand(verb, short, long string) *cobra.Command {
	in, vcenter := api.PushInput{Remove: verb == "remove"}, ""
	cmd := &cobra.Command{
		Use: verb + " VM --address HOST[:PORT] --credentials FILE", Short: short,
		Long: long + "\nThe credentials are a file in the configuration server's secrets directory with user: (root), and password: or key:, the name of a\n" +
			"private key's file beside it. The guest's host key is the one that is given, or that was recorded when it was first met.",
		Example: "  drover agent " + verb + " db-1 --address 10.0.0.7 --credentials guests",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if in.Address == "" || in.Credentials == "" {
				return &usageError{fmt.Errorf("--address and --credentials are needed")}
			}
			if err := a.connect(cmd.Context()); err != nil {
				return err
			}
			vms, err := a.findVMs(cmd.Context(), vcenter, args)
			if err != nil {
				return err
			}
			in.Machine, in.Name, in.Instance = vms[0].Machine, vms[0].Name, vms[0].BIOSUUID
			out, err := a.push(cmd.Context(), in)
			if err != nil {
				return err
			}
			return a.print(out, func(w io.Writer) { printPush(w, out) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&in.Address, "address", "", "host, or host:port, of the guest's sshd")
	f.StringVar(&in.Credentials, "credentials", "", "file in the configuration server's secrets directory")
	f.StringVar(&in.HostKey, "host-key", "", "fingerprint of the guest's host key, SHA256:..., as ssh-keygen -l prints it")
	f.StringVar(&vcenter, "vcenter", "", "vCenter of the VM, when its name is not unique")
	return cmd
}

func (a *app) push(ctx context.Context, in api.PushInput) (api.PushResult, error) {
	return ask[api.PushResult](ctx, a, pushTimeout, client.StartWorkflowOptions{
		ID: "push-" + in.Machine.String(), WorkflowExecutionErrorWhenAlreadyStarted: true, StaticSummary: in.Name,
	}, api.WorkflowPush, in)
}

func printPush(w io.Writer, r api.PushResult) {
	t := table.NewWriter()
	t.SetOutputMirror(w)
	t.AppendHeader(table.Row{"step", "result"})
	for _, s := range r.Steps {
		t.AppendRow(table.Row{s.Name, s.Result})
	}
	t.Render()
	for _, f := range r.Findings {
		if f.Level != api.LevelOK {
			_, _ = fmt.Fprintf(w, "%s %s: %s %s\n", f.Level, f.Check, f.What, f.Advice)
		}
	}
}
