package azstorage

import (
	"bytes"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"
	"github.com/stretchr/testify/require"

	"drover/tests/azurearm"
)

// writes opens a container of the server with the credential and writes pages there.
func writes(t *testing.T, s *azurearm.Server, cred azcore.TokenCredential) error {
	t.Helper()
	o := Account{Retry: Retry{Times: 1, First: time.Millisecond, Most: time.Second, Try: time.Minute}}.options()
	o.Transport = s.Client()
	c, err := container.NewClient(s.URL+"/blob/seeds/seed", cred, o)
	require.NoError(t, err)
	p := c.NewPageBlobClient("disk.vhd")
	if _, err := p.Create(t.Context(), 8192, nil); err != nil {
		return Clean(err)
	}
	data := bytes.Repeat([]byte{7}, 4096)
	_, err = p.UploadPages(t.Context(), streaming.NopCloser(bytes.NewReader(data)), blob.HTTPRange{Count: 4096},
		&pageblob.UploadPagesOptions{TransactionalValidation: CRC64(data)})
	return Clean(err)
}

// TestTokenOfAFederatedFile logs in with a workload's token file, as Entra wants it, and
// writes pages with the token that comes of it. Another file is refused, without a word
// of what is in it.
func TestTokenOfAFederatedFile(t *testing.T) {
	s := azurearm.Start()
	defer s.Close()
	file := filepath.Join(t.TempDir(), "token")
	t.Setenv("AZURE_FEDERATED_TOKEN_FILE", file)
	open := func(content string) azcore.TokenCredential {
		require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
		auth := Auth{Method: WorkloadIdentity, ClientID: azurearm.ClientID, TenantID: azurearm.Tenant}
		cred, err := auth.Credential(azcore.ClientOptions{
			Cloud: cloud.Configuration{ActiveDirectoryAuthorityHost: s.URL}, Transport: s.Client(),
		}, true)
		require.NoError(t, err)
		return cred
	}
	require.NoError(t, writes(t, s, open(azurearm.Assertion)))
	require.Equal(t, []string{"disk.vhd"}, s.Blobs("seeds", "seed"))

	asked := len(s.Requests("PUT", "disk.vhd"))
	err := writes(t, s, open("another-file.of-secrets"))
	require.Error(t, err)
	require.NotContains(t, err.Error(), "of-secrets")
	require.Len(t, s.Requests("PUT", "disk.vhd"), asked, "nothing is asked without a token")
}

// metadata sends what is meant for the metadata service of a virtual machine to the server.
type metadata struct {
	s     *azurearm.Server
	asked []url.Values
}

func (m *metadata) Do(r *http.Request) (*http.Response, error) {
	if r.URL.Host == "169.254.169.254" {
		at, err := url.Parse(m.s.URL)
		if err != nil {
			return nil, err
		}
		m.asked = append(m.asked, r.URL.Query())
		r = r.Clone(r.Context())
		r.URL.Scheme, r.URL.Host, r.Host = at.Scheme, at.Host, at.Host
	}
	return m.s.Client().Do(r)
}

// TestTokenOfAManagedIdentity asks the metadata service as a virtual machine does, for the
// only identity and for a named one. One that the machine does not have is refused.
func TestTokenOfAManagedIdentity(t *testing.T) {
	for client, ok := range map[string]bool{"": true, azurearm.ClientID: true, "another": false} {
		t.Run("client "+client, func(t *testing.T) {
			s := azurearm.Start()
			defer s.Close()
			m := &metadata{s: s}
			cred, err := Auth{Method: ManagedIdentity, ClientID: client}.Credential(azcore.ClientOptions{Transport: m}, false)
			require.NoError(t, err)
			err = writes(t, s, cred)
			require.NotEmpty(t, m.asked)
			require.Equal(t, "https://storage.azure.com", strings.TrimSuffix(m.asked[0].Get("resource"), "/"))
			require.Equal(t, client, m.asked[0].Get("client_id"))
			if !ok {
				require.ErrorContains(t, err, "Identity not found")
				require.Empty(t, s.Requests("PUT", "disk.vhd"), "nothing is asked without a token")
				return
			}
			require.NoError(t, err)
			require.Equal(t, []string{"disk.vhd"}, s.Blobs("seeds", "seed"))
		})
	}
}

// az stands for the Azure CLI: it writes down what it is asked, and gives a token, or says
// that nobody is logged in.
const az = `#!/bin/sh
echo "$@" >> "$AZ_ASKED"
if [ -z "$AZ_TOKEN" ]; then echo "ERROR: Please run 'az login' to setup account." >&2; exit 1; fi
printf '{"accessToken":"%s","expiresOn":"2999-01-01 00:00:00.000000","expires_on":32472144000,"subscription":"s","tenant":"t","tokenType":"Bearer"}' "$AZ_TOKEN"
`

// TestTokenOfTheCLI takes whoever is logged in with az.
func TestTokenOfTheCLI(t *testing.T) {
	s := azurearm.Start()
	defer s.Close()
	dir := t.TempDir()
	asked := filepath.Join(dir, "asked")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "az"), []byte(az), 0o700))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("AZ_ASKED", asked)
	t.Setenv("AZ_TOKEN", azurearm.Token)
	login := func() error {
		cred, err := Auth{Method: CLI, TenantID: azurearm.Tenant}.Credential(azcore.ClientOptions{}, false)
		require.NoError(t, err)
		return writes(t, s, cred)
	}
	require.NoError(t, login())
	require.Equal(t, []string{"disk.vhd"}, s.Blobs("seeds", "seed"))
	b, err := os.ReadFile(asked)
	require.NoError(t, err)
	require.Contains(t, string(b), "account get-access-token")
	require.Contains(t, string(b), "--resource https://storage.azure.com")
	require.Contains(t, string(b), "--tenant "+azurearm.Tenant)

	t.Setenv("AZ_TOKEN", "")
	require.ErrorContains(t, login(), "az login")
}
