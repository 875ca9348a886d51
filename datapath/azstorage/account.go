// Package azstorage connects to a container of an Azure Storage account: who we are, how
// requests are repeated and paced, and errors without secrets. What is kept there is the
// business of others.
package azstorage

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
)

// Ways to prove who we are.
const (
	ManagedIdentity  = "managed-identity"  // of the virtual machine or Arc server we run on
	WorkloadIdentity = "workload-identity" // a token file, as Kubernetes has them
	CLI              = "cli"               // whoever is logged in with az: for people, drover-recover above all
	SAS              = "sas"               // a user-delegation SAS in a file, read again when it changes
	EmulatorKey      = "emulator-key"      // the emulators' public key: refused anywhere else
)

// Auth says who we are.
type Auth struct {
	Method string
	// ClientID names the user-assigned identity; empty: the only one there is.
	ClientID string
	TenantID string // workload identity and CLI; empty: the environment's
	// Authority is the host that gives tokens, of sovereign clouds; empty: the public cloud's.
	Authority string
	SASFile   string
}

// Account is a container of an account, and the way to it.
type Account struct {
	// Endpoint is the URL of the account's blob service, whichever network leads to it:
	// https://name.blob.core.windows.net, a private link's name, another cloud's.
	Endpoint  string
	Container string
	Auth      Auth
	Retry     Retry
	// Transport sends requests, also those for tokens; nil: the SDK's own.
	Transport policy.Transporter
}

// Retry bounds how often a request is repeated. The zero value is [DefaultRetry].
type Retry struct {
	Times int           // after the first try
	First time.Duration // pause, doubled each time, unless the server names one
	Most  time.Duration // pause
	Try   time.Duration // of one try
}

// DefaultRetry gives a busy account about three minutes.
func DefaultRetry() Retry {
	return Retry{Times: 9, First: 500 * time.Millisecond, Most: time.Minute, Try: 2 * time.Minute}
}

const (
	emulatorAccount = "devstoreaccount1"
	// emulatorKey is printed in the emulators' manual: it is no secret.
	emulatorKey = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==" //nolint:gosec // public
)

var containerName = regexp.MustCompile(`^[a-z0-9](-?[a-z0-9]){2,62}$`)

// Check refuses what cannot work, before anything is asked.
func (a Account) Check() error {
	u, err := url.Parse(a.Endpoint)
	if err != nil || u.Host == "" || u.RawQuery != "" || u.User != nil || u.Fragment != "" {
		return errors.New("endpoint: want the URL of the account's blob service and nothing more, like https://name.blob.core.windows.net")
	}
	emulator := loopback(u.Hostname())
	if u.Scheme != "https" && (u.Scheme != "http" || !emulator) {
		return fmt.Errorf("endpoint %s: want https; http is for an emulator on this machine", a.Endpoint)
	}
	if !containerName.MatchString(a.Container) {
		return fmt.Errorf("container %q: want 3 to 63 of a-z, 0-9 and single dashes", a.Container)
	}
	switch a.Auth.Method {
	case ManagedIdentity, WorkloadIdentity, CLI:
		if u.Scheme != "https" {
			return fmt.Errorf("auth %s: a token is never sent over http", a.Auth.Method)
		}
	case SAS:
		if a.Auth.SASFile == "" {
			return errors.New("auth sas: want sasFile, the file that holds the SAS")
		}
	case EmulatorKey:
		if !emulator {
			return fmt.Errorf("auth %s: it is for an emulator on this machine; use %s, %s, %s or %s", EmulatorKey, ManagedIdentity, WorkloadIdentity, CLI, SAS)
		}
	default:
		return fmt.Errorf("auth %q: want %s, %s, %s, %s or %s", a.Auth.Method, ManagedIdentity, WorkloadIdentity, CLI, SAS, EmulatorKey)
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Container is an open container. It is safe for concurrent use.
type Container struct {
	*container.Client
	name string
}

// Open makes the client; nothing is asked of the account yet.
func Open(a Account) (*Container, error) {
	if err := a.Check(); err != nil {
		return nil, fmt.Errorf("azure storage: %w", err)
	}
	c, err := a.client()
	if err != nil {
		return nil, fmt.Errorf("azure storage %s: %w", a.Endpoint, Clean(err))
	}
	return &Container{Client: c, name: strings.TrimSuffix(a.Endpoint, "/") + "/" + a.Container}, nil
}

// Name is the container's URL, which holds no secret.
func (c *Container) Name() string { return c.name }

func (a Account) client() (*container.Client, error) {
	o := a.options()
	address := strings.TrimSuffix(a.Endpoint, "/") + "/" + a.Container
	switch a.Auth.Method {
	case EmulatorKey:
		key, err := container.NewSharedKeyCredential(emulatorAccount, emulatorKey)
		if err != nil {
			return nil, err
		}
		return container.NewClientWithSharedKeyCredential(address, key, o)
	case SAS:
		if _, err := os.Stat(a.Auth.SASFile); err != nil {
			return nil, fmt.Errorf("the SAS: %w", err)
		}
		o.PerRetryPolicies = append(o.PerRetryPolicies, &sasPolicy{file: a.Auth.SASFile})
		return container.NewClientWithNoCredential(address, o)
	}
	co := azcore.ClientOptions{Transport: a.Transport}
	if a.Auth.Authority != "" {
		co.Cloud = cloud.Configuration{ActiveDirectoryAuthorityHost: a.Auth.Authority}
	}
	cred, err := a.Auth.Credential(co, false)
	if err != nil {
		return nil, err
	}
	return container.NewClient(address, cred, o)
}

func (a Account) options() *container.ClientOptions {
	r := a.Retry
	if r == (Retry{}) {
		r = DefaultRetry()
	}
	return &container.ClientOptions{ClientOptions: azcore.ClientOptions{
		Transport: a.Transport,
		Telemetry: policy.TelemetryOptions{ApplicationID: "drover"},
		Retry: policy.RetryOptions{
			MaxRetries: int32(r.Times), RetryDelay: r.First, MaxRetryDelay: r.Most, TryTimeout: r.Try, //nolint:gosec // small
		},
		PerRetryPolicies: []policy.Policy{pacePolicy{}},
	}}
}

// Credential gives what asks for tokens, of the methods that do; it asks for none yet.
// own: the authority is no public one, which cannot be looked up.
func (a Auth) Credential(o azcore.ClientOptions, own bool) (azcore.TokenCredential, error) {
	switch a.Method {
	case ManagedIdentity:
		mo := &azidentity.ManagedIdentityCredentialOptions{ClientOptions: o}
		if a.ClientID != "" {
			mo.ID = azidentity.ClientID(a.ClientID)
		}
		return azidentity.NewManagedIdentityCredential(mo)
	case WorkloadIdentity:
		return azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{
			ClientOptions: o, ClientID: a.ClientID, TenantID: a.TenantID, DisableInstanceDiscovery: own,
		})
	case CLI:
		return azidentity.NewAzureCLICredential(&azidentity.AzureCLICredentialOptions{TenantID: a.TenantID})
	}
	return nil, fmt.Errorf("auth %q asks for no tokens", a.Method)
}
