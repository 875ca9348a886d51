package cli

import (
	"context"
	"errors"
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
	cmd := &cobra.Command{Use: "agent", Short: "Install, upgrade or remove the agent in a Linux guest, over SSH or by VMware Tools",
		Example: "  drover agent install db-1 --guest 10.0.0.7 --credentials guests\n  drover agent install db-1 --credentials guests --by tools"}
	cmd.AddCommand(
		a.pushCommand("install", "Install the agent in a guest, or upgrade it", "Install the agent in a Linux guest, or upgrade it: look whether the guest can have it, copy it, compare the digest, enrol it\n"+
			"with a token for this machine alone, have systemd run it, and show the agent's own checks. Run again it changes only what is\n"+
			"not as it should be."),
		a.pushCommand("remove", "Remove the agent from a guest", "Stop the agent and remove program and unit. Configuration and identity stay."))
	return cmd
}

func (a *app) pushCommand(verb, short, long string) *cobra.Command {
	in, vcenter := api.PushInput{Remove: verb == "remove"}, ""
	cmd := &cobra.Command{
		Use: verb + " VM --credentials FILE [--by ssh --guest HOST[:PORT] | --by tools]", Short: short,
		Long: long + "\nBy ssh it goes over the guest's sshd, whose host key is the one that is given, or that was recorded when it was first met. By tools\n" +
			"it goes through vCenter and VMware Tools in the guest; vCenter's user needs what `drover vcenter check --for push` asks for.\n" +
			"The credentials are a file in the configuration server's secrets directory with user: (root), and password:, or for ssh key:, the\n" +
			"name of a private key's file beside it.",
		Example: "  drover agent " + verb + " db-1 --guest 10.0.0.7 --credentials guests\n  drover agent " + verb + " db-1 --credentials guests --by tools",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := pushWay(&in); err != nil {
				return &usageError{err}
			}
			if err := a.connect(cmd.Context()); err != nil {
				return err
			}
			vms, err := a.findVMs(cmd.Context(), vcenter, args)
			if err != nil {
				return err
			}
			in.Machine, in.Name, in.Instance = vms[0].Machine, vms[0].Name, vms[0].BIOSUUID
			in.VM = api.VMRef{VCenter: vms[0].VCenter, InstanceUUID: vms[0].InstanceUUID}
			out, err := a.push(cmd.Context(), in)
			if err != nil {
				return err
			}
			return a.print(out, func(w io.Writer) { printPush(w, out) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&in.By, "by", "", "way into the guest: ssh, or tools (VMware Tools); ssh with --guest, else tools")
	f.StringVar(&in.Address, "guest", "", "host, or host:port, of the guest's sshd")
	f.StringVar(&in.Credentials, "credentials", "", "file in the configuration server's secrets directory")
	f.StringVar(&in.HostKey, "host-key", "", "fingerprint of the guest's host key, SHA256:..., as ssh-keygen -l prints it")
	f.StringVar(&vcenter, "vcenter", "", "vCenter of the VM, when its name is not unique")
	return cmd
}

// pushWay chooses the way into the guest, and refuses what does not go with it.
func pushWay(in *api.PushInput) error {
	if in.By == "" {
		in.By = api.PushByTools
		if in.Address != "" {
			in.By = api.PushBySSH
		}
	}
	switch {
	case in.Credentials == "":
		return errors.New("--credentials is needed")
	case in.By == api.PushBySSH && in.Address == "":
		return errors.New("--by ssh needs --guest")
	case in.By == api.PushByTools && (in.Address != "" || in.HostKey != ""):
		return errors.New("--guest and --host-key are for --by ssh")
	case in.By != api.PushBySSH && in.By != api.PushByTools:
		return fmt.Errorf("--by %s: want %s or %s", in.By, api.PushBySSH, api.PushByTools)
	}
	return nil
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
