// Command drover-config-server runs Drover's configuration server, and issues
// tokens and revokes certificates on it.
package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"drover/datapath/ident"
	"drover/worker/config"
	"drover/worker/configserver"
	"drover/worker/controlserver/admin"
	"drover/worker/service"
)

func main() { service.Main(command()) }

func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "drover-config-server",
		Short: "The configuration server of Drover",
		Long: "The configuration server enrols agents, process servers and master targets, tells\n" +
			"agents where to replicate, and runs the workflows of the vault on Temporal.",
		SilenceUsage: true, SilenceErrors: true,
	}
	root.AddCommand(serveCommand(), tokenCommand(), revokeCommand(), statusCommand(), service.VersionCommand())
	return root
}

func serveCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "serve --config FILE",
		Short: "Run the server until SIGTERM",
		Long: "Run the server until SIGTERM. Logs are JSON lines on stderr. Without Temporal the\n" +
			"control API serves, and the workflows begin when Temporal answers.",
		Example: "  drover-config-server serve --config /etc/drover/config-server.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.LoadConfigServer(file)
			if err != nil {
				return err
			}
			return configserver.Run(cmd.Context(), c, service.Logger(cmd.ErrOrStderr()))
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration file (YAML)")
	_ = cmd.MarkFlagRequired("config") // the flag is there
	return cmd
}

// peerFlags name an agent or server.
type peerFlags struct{ state, role, name, machine string }

func (f *peerFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.state, "state", "", "state directory of the running server")
	cmd.Flags().StringVar(&f.role, "role", "", "agent, process-server or master-target")
	cmd.Flags().StringVar(&f.name, "name", "", "name of the process server or master target")
	cmd.Flags().StringVar(&f.machine, "machine", "", "id of the agent's machine, as `drover machine show` prints it")
	for _, flag := range []string{"state", "role"} {
		_ = cmd.MarkFlagRequired(flag) // the flags are there
	}
	cmd.MarkFlagsMutuallyExclusive("name", "machine")
	cmd.MarkFlagsOneRequired("name", "machine")
}

// peer gives who is meant. An agent is named by its machine.
func (f *peerFlags) peer() (ident.Peer, error) {
	role := ident.Role(f.role)
	switch role {
	case ident.RoleAgent:
		name := f.machine
		if name == "" {
			name = f.name
		}
		_, err := ident.ParseMachineID(name)
		return ident.Peer{Role: role, Name: name}, err
	case ident.RoleProcessServer, ident.RoleMasterTarget, ident.RoleRelay:
		if f.name == "" {
			return ident.Peer{}, fmt.Errorf("--role %s: give its --name, as in its configuration file", role)
		}
		return ident.Peer{Role: role, Name: f.name}, nil
	}
	return ident.Peer{}, fmt.Errorf("--role %q: want %s, %s, %s or %s", f.role, ident.RoleAgent, ident.RoleProcessServer, ident.RoleMasterTarget, ident.RoleRelay)
}

func tokenCommand() *cobra.Command {
	var f peerFlags
	var instance string
	var ttl time.Duration
	cmd := &cobra.Command{
		Use:   "token --state DIR --role ROLE {--machine ID --instance UUID | --name NAME}",
		Short: "Issue a token to enrol one agent or server once",
		Long: "Issue a token to enrol one agent or server once, and print it. Run it on the\n" +
			"configuration server's host as the server's user. Put the token into the file that\n" +
			"the agent's or server's configuration names as tokenFile.",
		Example: "  drover-config-server token --state /var/lib/drover/config-server \\\n" +
			"      --role process-server --name ps-1 > ps-1.token\n" +
			"  drover-config-server token --state /var/lib/drover/config-server --role agent \\\n" +
			"      --machine 1d9f9a0d-5b55-56c9-97c2-d66d49c6192c --instance 42134a5c-0f0e-4f2b-8d0e-8f1b5d6a7c11 --ttl 30m",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			peer, err := f.peer()
			if err != nil {
				return err
			}
			if peer.Role == ident.RoleAgent && instance == "" {
				return fmt.Errorf("--role agent: give --instance, the hardware uuid of the machine (cat /sys/class/dmi/id/product_uuid there)")
			}
			token, err := admin.NewClient(f.state).Token(cmd.Context(), admin.TokenRequest{Role: peer.Role, Name: peer.Name, Instance: instance, TTL: ttl})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), token)
			return err
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&instance, "instance", "", "hardware uuid of the agent's machine")
	cmd.Flags().DurationVar(&ttl, "ttl", 30*time.Minute, "how long the token may be used, 15m to 1h")
	return cmd
}

func revokeCommand() *cobra.Command {
	var f peerFlags
	cmd := &cobra.Command{
		Use:   "revoke --state DIR --role ROLE {--machine ID | --name NAME}",
		Short: "Refuse the certificates of an agent or server from now on",
		Long: "Refuse the certificates of an agent or server from now on. The configuration server\n" +
			"refuses them at once, process servers and master targets within seconds.",
		Example: "  drover-config-server revoke --state /var/lib/drover/config-server --role process-server --name ps-1",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			peer, err := f.peer()
			if err != nil {
				return err
			}
			if err := admin.NewClient(f.state).Revoke(cmd.Context(), peer); err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "revoked", peer)
			return err
		},
	}
	f.add(cmd)
	return cmd
}

func statusCommand() *cobra.Command {
	var state string
	cmd := &cobra.Command{
		Use:     "status --state DIR",
		Short:   "List the agents and servers that are enrolled",
		Example: "  drover-config-server status --state /var/lib/drover/config-server",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := admin.NewClient(state).Status(cmd.Context())
			if err != nil {
				return err
			}
			return printStatus(cmd.OutOrStdout(), s)
		},
	}
	cmd.Flags().StringVar(&state, "state", "", "state directory of the running server")
	_ = cmd.MarkFlagRequired("state") // the flag is there
	return cmd
}
