package pageblob

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/service"
	"github.com/stretchr/testify/require"

	"drover/datapath/azstorage"
	"drover/datapath/changeset"
	"drover/datapath/ident"
	"drover/datapath/replica"
	rt "drover/datapath/replica/replicatest"
	"drover/tests/azurearm"
	"drover/tests/azurite"
)

// threePoints makes a replica with three points and gives its store and writer.
func threePoints(t *testing.T, a azstorage.Account) (*Store, replica.Writer) {
	t.Helper()
	s, err := Open(t.Context(), Config{Account: a, Limits: azurite.Unlimited()})
	require.NoError(t, err)
	w, err := s.OpenWriter(t.Context(), 1, rt.Spec())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.Close()) })
	require.NoError(t, w.BeginGeneration(t.Context(), rt.Spec().Disks, false, nil))
	for i := range uint64(3) {
		set, cut := rt.After(w.State(), changeset.Delta), rt.Crash()
		if i == 0 {
			set, cut = rt.After(w.State(), changeset.Base), rt.Complete()
		}
		_, err := w.Apply(t.Context(), set.Write(0, 0, rt.Pattern(i, block)).Cut(cut))
		require.NoError(t, err)
	}
	require.Len(t, w.State().Points, 3)
	return s, w
}

// TestWithoutAccountKeys: over TLS, as in Azure, a store does everything with the tokens of
// a managed identity. With a user delegation SAS of the container, which that identity
// has signed, it opens, writes, makes points and removes; the emulator takes no
// container's SAS for a snapshot, so none is read or deleted.
func TestWithoutAccountKeys(t *testing.T) {
	e := azurite.StartSecure(t)
	a := azstorage.Account{Endpoint: e.Endpoint, Container: "seed", Transport: e, Auth: azstorage.Auth{Method: azstorage.ManagedIdentity, ClientID: azurearm.OtherClientID}}
	c, err := azstorage.Open(a)
	require.NoError(t, err)
	require.NoError(t, c.Make(t.Context()))

	s, w := threePoints(t, a)
	points := w.State().Points
	r, err := s.OpenReader(t.Context(), rt.Spec().Machine)
	require.NoError(t, err)
	for i, p := range points {
		d, err := r.OpenDisk(t.Context(), p.ID, rt.Spec().Disks[0].ID)
		require.NoError(t, err)
		b := make([]byte, block)
		_, err = d.ReadAt(b, 0)
		require.NoError(t, err)
		require.Equal(t, rt.Pattern(uint64(i), block), b) //nolint:gosec // three
		require.NoError(t, d.Close())
	}
	require.NoError(t, r.Close())
	held, err := w.Delete(t.Context(), []ident.Seq{points[0].ID})
	require.NoError(t, err)
	require.Empty(t, held)
	require.NoError(t, s.Remove(t.Context(), rt.Spec().Machine, 1))

	cred, err := a.Auth.Credential(azcore.ClientOptions{Transport: e}, false)
	require.NoError(t, err)
	account, err := service.NewClient(e.Endpoint+"/", cred, &service.ClientOptions{ClientOptions: azcore.ClientOptions{Transport: e}})
	require.NoError(t, err)
	until := time.Now().UTC().Add(time.Hour)
	key, err := account.GetUserDelegationCredential(t.Context(), service.KeyInfo{
		Start: to.Ptr(time.Now().UTC().Add(-time.Minute).Format(sas.TimeFormat)), Expiry: to.Ptr(until.Format(sas.TimeFormat)),
	}, nil)
	require.NoError(t, err)
	signed, err := sas.BlobSignatureValues{
		Protocol: sas.ProtocolHTTPS, ExpiryTime: until, ContainerName: a.Container,
		Permissions: (&sas.ContainerPermissions{Read: true, Add: true, Create: true, Write: true, Delete: true, List: true}).String(),
	}.SignWithUserDelegation(key)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "sas")
	require.NoError(t, os.WriteFile(file, []byte(signed.Encode()), 0o600))
	a.Auth = azstorage.Auth{Method: azstorage.SAS, SASFile: file}
	s, _ = threePoints(t, a)
	require.NoError(t, s.Remove(t.Context(), rt.Spec().Machine, 1))

	forged := strings.Replace(signed.Encode(), "sp=", "sp=x", 1)
	a.Auth.SASFile = filepath.Join(t.TempDir(), "forged")
	require.NoError(t, os.WriteFile(a.Auth.SASFile, []byte(forged), 0o600))
	_, err = Open(t.Context(), Config{Account: a})
	require.ErrorIs(t, err, fs.ErrPermission)
	require.NotContains(t, err.Error(), "sig=")
}
