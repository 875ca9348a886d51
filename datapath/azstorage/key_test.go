package azstorage

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"
	"github.com/stretchr/testify/require"

	"drover/tests/azurearm"
)

// TestSnapshotsAreReadByAnAddress has a server, which checks the signature as Azure
// documents it, read a snapshot by its address. The key is renewed before what it signs
// would outlive it.
func TestSnapshotsAreReadByAnAddress(t *testing.T) {
	s := azurearm.Start()
	defer s.Close()
	m := &metadata{s: s}
	cred, err := Auth{Method: ManagedIdentity, ClientID: azurearm.OtherClientID}.Credential(azcore.ClientOptions{Transport: m}, false)
	require.NoError(t, err)
	require.NoError(t, writes(t, s, cred))
	snapshot := s.AddSnapshot("seeds", "seed", "other.vhd", []byte(strings.Repeat("x", 8192)))
	d, err := NewDelegate(s.URL+"/blob/seeds", cred, azcore.ClientOptions{Transport: m})
	require.NoError(t, err)
	clock := time.Now()
	d.now = func() time.Time { return clock }

	to, err := pageblob.NewClient(s.URL+"/blob/seeds/seed/disk.vhd", cred, &pageblob.ClientOptions{ClientOptions: azcore.ClientOptions{Transport: m}})
	require.NoError(t, err)
	fill := func(address string) error {
		_, err := to.UploadPagesFromURL(t.Context(), address, 0, 0, 8192, nil)
		return err
	}
	signed, err := d.Readable(t.Context(), snapshot)
	require.NoError(t, err)
	require.NoError(t, fill(signed))
	for _, wrong := range []string{
		snapshot, strings.Replace(signed, "sp=r", "sp=rw", 1), strings.Replace(signed, "snapshot=2026", "snapshot=2025", 1),
		strings.Replace(signed, "https", "http", 1),
	} {
		require.Error(t, fill(wrong), wrong)
	}

	asked := func() int { return len(s.Requests(http.MethodPost, "/blob/seeds")) }
	require.Equal(t, 1, asked())
	clock = clock.Add(keyFor - readFor - clockSkew - time.Minute)
	_, err = d.Readable(t.Context(), snapshot)
	require.NoError(t, err)
	require.Equal(t, 1, asked(), "it is good for longer than the address")
	clock = clock.Add(2 * time.Minute)
	_, err = d.Readable(t.Context(), snapshot)
	require.NoError(t, err)
	require.Equal(t, 2, asked())

	s.Inject(azurearm.Fault{Method: http.MethodPost, Path: "/blob/seeds", Status: http.StatusForbidden, Code: "AuthorizationPermissionMismatch"})
	d.until = time.Time{}
	require.ErrorContains(t, d.Check(t.Context()), "AuthorizationPermissionMismatch")
	require.NoError(t, d.Check(t.Context()))
}
