package azstorage

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/stretchr/testify/require"

	"drover/tests/azurearm"
)

// TestTokenOfAFederatedFile logs in with a workload's token file, as Entra wants it, and
// writes pages with the token that comes of it. Another file is refused, without a word
// of what is in it.
func TestTokenOfAFederatedFile(t *testing.T) {
	s := azurearm.Start()
	defer s.Close()
	file := filepath.Join(t.TempDir(), "token")
	t.Setenv("AZURE_FEDERATED_TOKEN_FILE", file)
	open := func(content string) *container.Client {
		require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
		auth := Auth{Method: WorkloadIdentity, ClientID: azurearm.ClientID, TenantID: azurearm.Tenant}
		cred, err := auth.Credential(azcore.ClientOptions{
			Cloud: cloud.Configuration{ActiveDirectoryAuthorityHost: s.URL}, Transport: s.Client(),
		}, true)
		require.NoError(t, err)
		o := Account{Retry: Retry{Times: 1, First: time.Millisecond, Most: time.Second, Try: time.Minute}}.options()
		o.Transport = s.Client()
		c, err := container.NewClient(s.URL+"/blob/seeds/seed", cred, o)
		require.NoError(t, err)
		return c
	}
	p := open(azurearm.Assertion).NewPageBlobClient("disk.vhd")
	_, err := p.Create(t.Context(), 8192, nil)
	require.NoError(t, err)
	data := bytes.Repeat([]byte{7}, 4096)
	_, err = p.UploadPages(t.Context(), streaming.NopCloser(bytes.NewReader(data)), blob.HTTPRange{Count: 4096}, nil)
	require.NoError(t, err)
	require.Equal(t, []string{"disk.vhd"}, s.Blobs("seeds", "seed"))

	_, err = open("another-file.of-secrets").NewPageBlobClient("disk.vhd").GetProperties(t.Context(), nil)
	require.Error(t, err)
	require.NotContains(t, Clean(err).Error(), "of-secrets")
	require.Len(t, s.Requests("HEAD", "disk.vhd"), 0, "nothing is asked without a token")
}
