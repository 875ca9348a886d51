package cli

import (
	"fmt"
	"io"
	"net/url"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	enums "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"

	"drover/workflows/api"
)

func (a *app) vcenterCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "vcenter", Short: "Tell Drover about vCenters", Example: "  drover vcenter add vc-1 --url https://vcenter.example/sdk --credentials vcenter"}
	cmd.AddCommand(a.vcenterAddCommand(), a.vcenterCheckCommand())
	return cmd
}

func (a *app) vcenterAddCommand() *cobra.Command {
	var v api.VCenter
	cmd := &cobra.Command{
		Use:   "add NAME --url URL --credentials FILE",
		Short: "Discover the VMs of a vCenter from now on",
		Long: "Discover the VMs of a vCenter from now on.\n" +
			"The credentials are a file in the configuration server's secrets directory, with two lines, user: and password:; or\n" +
			"env:NAME, a variable of its environment with the same text, whose name begins with DROVER_SECRET_.\n" +
			"They never pass through this command or through Temporal.",
		Example: "  drover vcenter add vc-1 --url https://vcenter.example/sdk --thumbprint 4C3D...D8 --credentials vcenter",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			v.Name = args[0]
			if err := checkVCenter(v); err != nil {
				return &usageError{err}
			}
			if err := a.connect(cmd.Context()); err != nil {
				return err
			}
			run, err := a.client.ExecuteWorkflow(cmd.Context(), client.StartWorkflowOptions{
				ID: api.DiscoveryWorkflowID(v.Name), TaskQueue: api.ControlQueue,
				// Adding it again takes the new address, thumbprint or credentials.
				WorkflowIDConflictPolicy: enums.WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING,
				StaticSummary:            "vCenter " + v.Name,
			}, api.WorkflowDiscovery, api.DiscoveryInput{VCenter: v})
			if err != nil {
				return err
			}
			out := struct {
				Name     string `json:"name"`
				Workflow string `json:"workflow"`
			}{v.Name, run.GetID()}
			return a.print(out, func(w io.Writer) {
				_, _ = fmt.Fprintf(w, "vCenter %s is added; see its VMs with: drover discover %s\n", v.Name, v.Name)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&v.URL, "url", "", "address, https://HOST/sdk")
	f.StringVar(&v.Thumbprint, "thumbprint", "", "SHA-256 of the server's certificate; empty trusts certificate authorities")
	f.StringVar(&v.CA, "ca", "", "file in the secrets directory with the certificate authority to trust; empty: those of the system")
	f.StringVar(&v.Credentials, "credentials", "", "file in the configuration server's secrets directory, or env:DROVER_SECRET_...")
	return cmd
}

var sha256Hex = regexp.MustCompile(`^([0-9a-fA-F]{2}:?){31}[0-9a-fA-F]{2}$`)

func checkVCenter(v api.VCenter) error {
	u, err := url.Parse(v.URL)
	switch {
	case !api.ValidName(v.Name):
		return fmt.Errorf("name %q: want letters a-z, digits and -", v.Name)
	case err != nil || u.Scheme != "https" || u.Host == "":
		return fmt.Errorf("--url %q: want https://HOST/sdk", v.URL)
	case u.User != nil:
		return fmt.Errorf("--url: no user or password here; put them into the credentials file")
	case v.Thumbprint != "" && !sha256Hex.MatchString(v.Thumbprint):
		return fmt.Errorf("--thumbprint %q: want the SHA-256 of the certificate, 64 hexadecimal digits, colons allowed", v.Thumbprint)
	case strings.ContainsAny(v.CA, "/\\"):
		return fmt.Errorf("--ca %q: want the plain name of a file in the configuration server's secrets directory", v.CA)
	case v.Credentials == "" || strings.ContainsAny(v.Credentials, "/\\"):
		return fmt.Errorf("--credentials %q: want the plain name of a file in the configuration server's secrets directory", v.Credentials)
	}
	return nil
}
