package vsphere

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/vmware/govmomi"
	vimsession "github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"

	"drover/workflows/api"
)

// session is a log-in at one vCenter.
type session struct {
	name   string
	client *govmomi.Client
}

// credentials is the file that api.VCenter.Credentials names.
type credentials struct {
	User     string `yaml:"user"`
	Password string `yaml:"password"`
}

const maxCredentials = 16 << 10

func (a *Activities) credentials(name string) (credentials, error) {
	var c credentials
	if name == "" || name != filepath.Base(name) || strings.HasPrefix(name, ".") {
		return c, failed(api.CodeInvalid, nil, "credentials %q: want the plain name of a file in the configuration server's secrets directory", name)
	}
	root, err := os.OpenRoot(a.config.Secrets)
	if err != nil {
		return c, failed(api.CodeInternal, err, "open the secrets directory")
	}
	defer func() { _ = root.Close() }()
	b, err := root.ReadFile(name)
	if err != nil {
		return c, failed(api.CodeNotFound, err, "credentials %s: put a file with user: and password: into the configuration server's secrets directory", name)
	}
	// The decoder's error would show the file's text: it is not passed on.
	if len(b) > maxCredentials || yaml.NewDecoder(bytes.NewReader(b), yaml.Strict()).Decode(&c) != nil || c.User == "" {
		return c, failed(api.CodeInvalid, nil, "credentials file %s: want two lines of YAML, user: and password:", name)
	}
	return c, nil
}

// login opens a session. The server is trusted by its thumbprint if one is given,
// by the system's certificate authorities otherwise.
func (a *Activities) login(ctx context.Context, v api.VCenter) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	u, err := url.Parse(v.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, failed(api.CodeInvalid, nil, "vCenter %s: URL must be like https://host/sdk, without user or password", v.Name)
	}
	secret, err := a.credentials(v.Credentials)
	if err != nil {
		return nil, err
	}
	pinned := v.Thumbprint != ""
	transport := soap.NewClient(u, pinned)
	transport.Timeout = inventoryTimeout
	if pinned {
		transport.DefaultTransport().TLSClientConfig.VerifyConnection = pin(v.Thumbprint)
	}
	vim, err := vim25.NewClient(ctx, transport)
	if err != nil {
		return nil, failed(api.CodeVCenter, err, "connect to vCenter %s at %s", v.Name, v.URL)
	}
	client := &govmomi.Client{Client: vim, SessionManager: vimsession.NewManager(vim)}
	if err := client.Login(ctx, url.UserPassword(secret.User, secret.Password)); err != nil {
		return nil, failed(api.CodeVCenter, err, "log in to vCenter %s as the user of credentials %s", v.Name, v.Credentials)
	}
	return &session{name: v.Name, client: client}, nil
}

// pin accepts exactly the certificate with the SHA-256 thumbprint (hex, colons
// allowed).
func pin(thumbprint string) func(tls.ConnectionState) error {
	want := strings.ToLower(strings.ReplaceAll(thumbprint, ":", ""))
	return func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 {
			return errors.New("the server showed no certificate")
		}
		sum := sha256.Sum256(s.PeerCertificates[0].Raw)
		if got := hex.EncodeToString(sum[:]); got != want {
			return fmt.Errorf("the server's certificate has the SHA-256 thumbprint %s, want %s: "+
				"if it was renewed, add the vCenter again with the new one", got, want)
		}
		return nil
	}
}

func (s *session) logout(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), loginTimeout)
	defer cancel()
	_ = s.client.Logout(ctx) // vCenter ends idle sessions by itself
}

// list reads properties of all VMs.
func (s *session) list(ctx context.Context, properties []string) ([]mo.VirtualMachine, error) {
	all, err := view.NewManager(s.client.Client).CreateContainerView(ctx, s.client.ServiceContent.RootFolder, []string{"VirtualMachine"}, true)
	if err != nil {
		return nil, failed(api.CodeVCenter, err, "list the VMs of vCenter %s", s.name)
	}
	defer func() { _ = all.Destroy(context.WithoutCancel(ctx)) }()
	var vms []mo.VirtualMachine
	if err := all.Retrieve(ctx, []string{"VirtualMachine"}, properties, &vms); err != nil {
		return nil, failed(api.CodeVCenter, err, "list the VMs of vCenter %s", s.name)
	}
	if len(vms) > MaxVMs {
		return nil, failed(api.CodeInvalid, nil, "vCenter %s has %d VMs, at most %d can be handled: give the user a narrower view", s.name, len(vms), MaxVMs)
	}
	return vms, nil
}
