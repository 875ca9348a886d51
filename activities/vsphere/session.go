package vsphere

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/vmware/govmomi"
	vimsession "github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/session/keepalive"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"

	"drover/activities/secretfile"
	"drover/workflows/api"
)

// session is a log-in at one vCenter, over SOAP and, when something needs it, over REST.
// Many calls use it at once.
type session struct {
	name   string // of the vCenter
	key    string // of what it was opened with
	client *govmomi.Client
	trust  *tls.Config // by which vCenter was trusted
	rest   restPlace
	logsIn string                      // the credentials' name
	secret func() (credentials, error) // as they are now
	config Config
}

// credentials is the file that api.VCenter.Credentials names.
type credentials struct {
	User     string `yaml:"user"`
	Password string `yaml:"password"`
}

const maxSecret = 256 << 10 // bytes of a file in the secrets directory

func (a *Activities) credentials(name string) (credentials, error) {
	var c credentials
	b, err := secretfile.Read(a.config.Secrets, "credentials", name, "a file with user: and password:", maxSecret)
	if err != nil {
		return c, err
	}
	// The decoder's error would show the file's text: it is not passed on.
	if yaml.NewDecoder(bytes.NewReader(b), yaml.Strict()).Decode(&c) != nil || c.User == "" {
		return c, failed(api.CodeInvalid, nil, "credentials file %s: want two lines of YAML, user: and password:", name)
	}
	return c, nil
}

// access is all that a session is opened with.
type access struct {
	vcenter api.VCenter
	url     *url.URL
	secret  credentials
	ca      []byte // PEM; nil: the system's authorities
}

// access reads what the vCenter refers to, every time: what was changed counts at once.
func (a *Activities) access(v api.VCenter) (access, error) {
	out := access{vcenter: v}
	u, err := url.Parse(v.URL)
	if out.url = u; err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		return out, failed(api.CodeInvalid, nil, "vCenter %s: URL must be like https://host/sdk, without user or password", v.Name)
	}
	if out.secret, err = a.credentials(v.Credentials); err != nil || v.CA == "" {
		return out, err
	}
	out.ca, err = secretfile.Read(a.config.Secrets, "CA", v.CA, "the certificate authority's certificate (PEM)", maxSecret)
	return out, err
}

// key is another one for everything that makes another session.
func (x access) key() string {
	sum := sha256.New()
	for _, part := range []string{x.vcenter.URL, x.vcenter.Thumbprint, string(x.ca), x.secret.User, x.secret.Password} {
		_, _ = fmt.Fprintf(sum, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// login opens a session. The server is trusted by its thumbprint if one is given, by
// the authority in the CA file if one is named, by the system's otherwise.
func (a *Activities) login(ctx context.Context, x access) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	v := x.vcenter
	transport, err := transportOf(x)
	if err != nil {
		return nil, err
	}
	vim, err := vim25.NewClient(ctx, transport)
	if err != nil {
		return nil, failed(api.CodeVCenter, err, "connect to vCenter %s at %s", v.Name, v.URL)
	}
	raw := vim.RoundTripper
	vim.RoundTripper = keepalive.NewHandlerSOAP(raw, a.config.KeepAlive, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), loginTimeout)
		defer cancel()
		_, err := methods.GetCurrentTime(ctx, raw)
		return err
	})
	client := &govmomi.Client{Client: vim, SessionManager: vimsession.NewManager(vim)}
	if err := client.Login(ctx, url.UserPassword(x.secret.User, x.secret.Password)); err != nil {
		return nil, failed(api.CodeVCenter, err, "log in to vCenter %s as the user of credentials %s", v.Name, v.Credentials)
	}
	return &session{
		name: v.Name, key: x.key(), client: client, trust: transport.DefaultTransport().TLSClientConfig,
		rest:   restPlace{lock: make(chan struct{}, 1)},
		logsIn: v.Credentials,
		secret: func() (credentials, error) { return a.credentials(v.Credentials) },
		config: a.config,
	}, nil
}

func transportOf(x access) (*soap.Client, error) {
	v := x.vcenter
	pinned := v.Thumbprint != ""
	transport := soap.NewClient(x.url, pinned)
	transport.Timeout = inventoryTimeout
	conf := transport.DefaultTransport().TLSClientConfig
	switch {
	case pinned:
		conf.VerifyConnection = pin(v.Thumbprint)
	case x.ca != nil:
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(x.ca) {
			return nil, failed(api.CodeInvalid, nil, "vCenter %s: the file %s has no certificate in PEM form", v.Name, v.CA)
		}
	}
	return transport, nil
}

// errPin is a certificate that is not the one that is pinned.
var errPin = errors.New("wrong certificate")

// pin accepts exactly the certificate with the SHA-256 thumbprint (hex, colons
// allowed).
func pin(thumbprint string) func(tls.ConnectionState) error {
	want := strings.ToLower(strings.ReplaceAll(thumbprint, ":", ""))
	return func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 {
			return fmt.Errorf("%w: the server showed none", errPin)
		}
		sum := sha256.Sum256(s.PeerCertificates[0].Raw)
		if got := hex.EncodeToString(sum[:]); got != want {
			return fmt.Errorf("%w: the server's certificate has the SHA-256 thumbprint %s, want %s: "+
				"if it was renewed, add the vCenter again with the new one", errPin, got, want)
		}
		return nil
	}
}

func (s *session) logout(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), loginTimeout)
	defer cancel()
	s.logoutREST(ctx)
	_ = s.client.Logout(ctx) // vCenter ends idle sessions by itself
	s.client.CloseIdleConnections()
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
