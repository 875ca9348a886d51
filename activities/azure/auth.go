package azure

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"drover/datapath/azstorage"
)

// Ways to prove who we are.
const (
	ManagedIdentity  = azstorage.ManagedIdentity
	WorkloadIdentity = azstorage.WorkloadIdentity
	CLI              = azstorage.CLI
	ClientSecret     = "client-secret" //nolint:gosec // a service principal with a secret in a file
)

// maxSecret bounds the file of a secret.
const maxSecret = 4096

// Auth says who we are. The secret itself stays in its file.
type Auth struct {
	Method     string
	TenantID   string // of a service principal
	ClientID   string // of it, or of a user-assigned identity
	SecretFile string
}

// Endpoints say which Azure it is. The zero value is the public one.
type Endpoints struct {
	Cloud string // "public", "us-government", "china"; empty: public
	// Authority and Manager are the URLs of another's token service and resource
	// manager; Audience is what its tokens are for.
	Authority, Manager, Audience string
	CAFile                       string // PEM; empty: the system's
}

// Configuration gives the SDK's.
func (e Endpoints) Configuration() (cloud.Configuration, error) {
	if (e.Authority == "") != (e.Manager == "") {
		return cloud.Configuration{}, errors.New("azure: endpoints: name the authority and the manager, or neither")
	}
	if e.Authority != "" {
		for _, u := range []string{e.Authority, e.Manager} {
			if !strings.HasPrefix(u, "https://") {
				return cloud.Configuration{}, fmt.Errorf("azure: endpoint %q: want an https URL", u)
			}
		}
		audience := e.Audience
		if audience == "" {
			audience = e.Manager
		}
		return cloud.Configuration{ActiveDirectoryAuthorityHost: e.Authority, Services: map[cloud.ServiceName]cloud.ServiceConfiguration{
			cloud.ResourceManager: {Endpoint: e.Manager, Audience: audience},
		}}, nil
	}
	switch e.Cloud {
	case "", "public":
		return cloud.AzurePublic, nil
	case "us-government":
		return cloud.AzureGovernment, nil
	case "china":
		return cloud.AzureChina, nil
	}
	return cloud.Configuration{}, fmt.Errorf("azure: cloud %q: want public, us-government or china, or name the endpoints", e.Cloud)
}

// Transport gives a client that trusts the authority of the file; nil without one.
func (e Endpoints) Transport() (policy.Transporter, error) {
	if e.CAFile == "" {
		return nil, nil //nolint:nilnil // the SDK's own
	}
	pem, err := os.ReadFile(e.CAFile)
	if err != nil {
		return nil, fmt.Errorf("azure: read the authority to trust: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("azure: %s has no certificate in PEM", e.CAFile)
	}
	transport, ok := http.DefaultTransport.(*http.Transport)
	if !ok {
		return nil, errors.New("azure: no transport to begin with")
	}
	transport = transport.Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	return &http.Client{Transport: transport}, nil
}

// Credential gives what asks for tokens. It asks for none yet.
func (a Auth) Credential(c cloud.Configuration, transport policy.Transporter, own bool) (azcore.TokenCredential, error) {
	o := azcore.ClientOptions{Cloud: c, Transport: transport}
	switch a.Method {
	case ManagedIdentity, WorkloadIdentity, CLI:
		return azstorage.Auth{Method: a.Method, ClientID: a.ClientID, TenantID: a.TenantID}.Credential(o, own)
	case ClientSecret:
		secret, err := a.secret()
		if err != nil {
			return nil, err
		}
		return azidentity.NewClientSecretCredential(a.TenantID, a.ClientID, secret, &azidentity.ClientSecretCredentialOptions{
			ClientOptions: o, DisableInstanceDiscovery: own,
		})
	}
	return nil, fmt.Errorf("azure: auth %q: want %s, %s, %s or %s", a.Method, ManagedIdentity, WorkloadIdentity, CLI, ClientSecret)
}

func (a Auth) secret() (string, error) {
	info, err := os.Stat(a.SecretFile)
	if err != nil {
		return "", fmt.Errorf("azure: read the secret of the service principal: %w", err)
	}
	if info.Mode()&0o077 != 0 || info.Size() > maxSecret {
		return "", fmt.Errorf("azure: the secret %s can be read by others (%s) or is no secret: make it 0600", a.SecretFile, info.Mode())
	}
	b, err := os.ReadFile(a.SecretFile)
	return strings.TrimSpace(string(b)), err
}
