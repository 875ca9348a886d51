// Command drover-recover gets machines out of a replica store with nothing but the
// store: no configuration server, no Temporal, no network.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"drover/datapath/azstorage"
	"drover/datapath/ident"
	"drover/datapath/recover"
	"drover/datapath/replica"
	"drover/datapath/replica/file"
	"drover/datapath/replica/pageblob"
)

// version is set when the program is built.
var version = "unknown"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	code := execute(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// Exit codes.
const (
	exitFailed = 1
	exitUsage  = 2 // the command line is wrong: nothing was done
)

// execute runs the program and gives its exit code.
func execute(ctx context.Context, args []string, out, errs io.Writer) int {
	started := false
	cmd := command()
	for _, c := range cmd.Commands() {
		do := c.RunE
		c.RunE = func(cmd *cobra.Command, args []string) error {
			started = true
			return do(cmd, args)
		}
	}
	cmd.SetArgs(args)
	cmd.SetOut(out)
	cmd.SetErr(errs)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	_, _ = fmt.Fprintln(errs, "drover-recover:", err)
	if !started {
		return exitUsage
	}
	return exitFailed
}

// app is what the verbs share.
type app struct {
	store string
	json  bool
	auth  azstorage.Auth // of a store in Azure
}

func command() *cobra.Command {
	a := &app{}
	root := &cobra.Command{
		Use:   "drover-recover",
		Short: "Recover machines from a replica store alone",
		Long: "Recover machines from a replica store alone: it needs no configuration server, no\n" +
			"Temporal and no network. It reads the store; the one thing it writes there is a hold\n" +
			"on the recovery point it reads. A store in Azure is read by the container's URL, and with\n" +
			"the network that leads there.",
		SilenceUsage: true, SilenceErrors: true, Version: version,
	}
	root.PersistentFlags().StringVar(&a.store, "store", "", "directory of the store, or URL of its container in Azure")
	root.PersistentFlags().StringVar(&a.auth.Method, "azure-auth", azstorage.CLI, "who reads the container: cli, managed-identity, workload-identity, sas, or emulator-key")
	root.PersistentFlags().StringVar(&a.auth.SASFile, "azure-sas-file", "", "file with the SAS, for --azure-auth sas")
	root.PersistentFlags().StringVar(&a.auth.ClientID, "azure-client-id", "", "which managed or workload identity, when there are several")
	root.PersistentFlags().StringVar(&a.auth.TenantID, "azure-tenant", "", "tenant, when it is not the one that is logged in to")
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print JSON for programs")
	_ = root.MarkPersistentFlagRequired("store") // the flag is there
	root.AddCommand(a.machines(), a.points(), a.groups(), a.plans(), a.plan(), a.write(), a.verify())
	return root
}

// open opens the store that is there; it never makes one.
func (a *app) open(ctx context.Context) (replica.Store, error) {
	if strings.HasPrefix(a.store, "https://") || strings.HasPrefix(a.store, "http://") {
		at := strings.LastIndexByte(strings.TrimSuffix(a.store, "/"), '/')
		return pageblob.Open(ctx, pageblob.Config{Account: azstorage.Account{
			Endpoint: a.store[:at], Container: strings.TrimSuffix(a.store[at+1:], "/"), Auth: a.auth,
		}})
	}
	if err := file.IsStore(a.store); err != nil {
		return nil, fmt.Errorf("open the store: %w", err)
	}
	return file.Open(a.store)
}

func (a *app) print(w io.Writer, v any, text func(table.Writer)) error {
	if a.json {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	t := table.NewWriter()
	t.SetOutputMirror(w)
	text(t)
	t.Render()
	return nil
}

func (a *app) machines() *cobra.Command {
	return &cobra.Command{
		Use: "machines", Short: "List the machines of the store", Args: cobra.NoArgs,
		Example: "  drover-recover machines --store /mnt/seed",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			all, err := recover.Machines(cmd.Context(), s)
			if err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), all, func(t table.Writer) {
				t.AppendHeader(table.Row{"machine", "id", "disks", "points", "newest point", "base"})
				for _, st := range all {
					newest := "-"
					if p, err := recover.Point(st, 0); err == nil {
						newest = p.Time.UTC().Format(time.RFC3339)
					}
					base := "complete"
					if !st.Complete {
						base = "being copied; older points are whole"
					}
					t.AppendRow(table.Row{st.Spec.Name, st.Spec.Machine, len(st.Spec.Disks), len(st.Points), newest, base})
				}
			})
		},
	}
}

func (a *app) points() *cobra.Command {
	return &cobra.Command{
		Use: "points MACHINE", Short: "List a machine's recovery points", Args: cobra.ExactArgs(1),
		Long:    "List a machine's recovery points, oldest first. MACHINE is its name or its id.",
		Example: "  drover-recover points db-1 --store /mnt/seed",
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			st, err := recover.Find(cmd.Context(), s, args[0])
			if err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), st.Points, func(t table.Writer) {
				t.AppendHeader(table.Row{"point", "time", "consistency", "group", "final", "note"})
				for _, p := range st.Points {
					round := ""
					if p.Group != nil {
						round = p.Group.Name + " " + p.Group.Round.String()
					}
					t.AppendRow(table.Row{p.ID, p.Time.UTC().Format(time.RFC3339), p.Consistency, round, p.Final, p.Note})
				}
			})
		},
	}
}

func (a *app) plans() *cobra.Command {
	return &cobra.Command{
		Use: "plans", Short: "List the recovery plans that lie beside the machines", Args: cobra.NoArgs,
		Long:    "List the recovery plans that lie beside the machines: the groups in their order, and the\nmachines of each, which recover together.",
		Example: "  drover-recover plans --store /mnt/seed",
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := a.readPlans(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), all, func(t table.Writer) {
				t.AppendHeader(table.Row{"plan", "group", "machines"})
				for _, p := range all {
					for i, g := range p.Groups {
						t.AppendRow(table.Row{p.Name, fmt.Sprintf("%d %s", i+1, g.Name), strings.Join(g.Machines, ", ")})
					}
				}
			})
		},
	}
}

func (a *app) plan() *cobra.Command {
	return &cobra.Command{
		Use: "plan NAME", Short: "Print a recovery plan, with its actions", Args: cobra.ExactArgs(1),
		Long:    "Print a recovery plan as the control plane knew it, with its actions, as JSON.",
		Example: "  drover-recover plan shop --store /mnt/seed",
		RunE: func(cmd *cobra.Command, args []string) error {
			all, err := a.readPlans(cmd.Context())
			if err != nil {
				return err
			}
			for _, p := range all {
				if p.Name == args[0] {
					_, err := fmt.Fprintln(cmd.OutOrStdout(), string(p.Document))
					return err
				}
			}
			return fmt.Errorf("recovery plan %s: %w in this store; it has %d", args[0], replica.ErrNotFound, len(all))
		},
	}
}

func (a *app) readPlans(ctx context.Context) ([]recover.Plan, error) {
	s, err := a.open(ctx)
	if err != nil {
		return nil, err
	}
	return recover.Plans(ctx, s)
}

func (a *app) write() *cobra.Command {
	var out string
	var number uint64
	cmd := &cobra.Command{
		Use: "write MACHINE --out DIR", Short: "Write a machine's disks, as of a recovery point, to image files", Args: cobra.ExactArgs(1),
		Long: "Write all disks of a machine, as of a recovery point, to raw image files in DIR. They are\n" +
			"sparse, every block is checked against its checksum, and a file has its name only once\n" +
			"it is whole. Convert them with qemu-img for another hypervisor.",
		Example: "  drover-recover write db-1 --store /mnt/seed --out /mnt/recovered\n" +
			"  drover-recover write db-1 --point 1041 --store /mnt/seed --out /mnt/recovered",
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			st, err := recover.Find(cmd.Context(), s, args[0])
			if err != nil {
				return err
			}
			p, err := recover.Point(st, ident.Seq(number))
			if err != nil {
				return err
			}
			return a.writePoint(cmd, s, st, p, out)
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "directory for the image files, made when absent")
	cmd.Flags().Uint64Var(&number, "point", 0, "recovery point (default: the newest)")
	_ = cmd.MarkFlagRequired("out") // the flag is there
	return cmd
}

// progress tells once a second how far a disk is, in bytes.
func progress(cmd *cobra.Command) func(disk string, size, done int64) {
	told := time.Now()
	return func(disk string, size, done int64) {
		if time.Since(told) > time.Second {
			told = time.Now()
			_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "%s: %d %% of %d MiB\n", disk, 100*done/size, size>>20)
		}
	}
}

func (a *app) writePoint(cmd *cobra.Command, s replica.Store, st replica.State, p replica.Point, out string) error {
	if err := os.MkdirAll(out, 0o700); err != nil {
		return fmt.Errorf("make the directory for the images: %w", err)
	}
	begun, tell := time.Now(), progress(cmd)
	disks, err := recover.Write(cmd.Context(), s, st, p, out, func(d recover.Disk, done int64) { tell(d.Name, d.Size, done) })
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "%s as of point %d, %s (%s), in %s\n", st.Spec.Name, p.ID,
		p.Time.UTC().Format(time.RFC3339), p.Consistency, time.Since(begun).Round(time.Millisecond))
	return a.print(cmd.OutOrStdout(), disks, func(t table.Writer) {
		t.AppendHeader(table.Row{"disk", "image", "bytes", "data"})
		for _, d := range disks {
			t.AppendRow(table.Row{d.Name, d.Path, d.Size, d.Data})
		}
	})
}
