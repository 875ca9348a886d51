package pageblob

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
	"github.com/stretchr/testify/require"

	"drover/datapath/azstorage"
	"drover/datapath/changeset"
	rt "drover/datapath/replica/replicatest"
	"drover/tests/azurite"
)

// TestRightsOfASAS: the rights that docs/azure.md asks of a SAS are enough to open, write,
// make points and remove. Here it is signed with the emulator's key, in Azure with a
// user's. The emulator takes no container's SAS for a snapshot, so none is read or deleted.
func TestRightsOfASAS(t *testing.T) {
	dir := t.TempDir()
	a := azurite.Shared(t).Account(t, dir)
	key, err := azblob.NewSharedKeyCredential("devstoreaccount1", azurite.Key)
	require.NoError(t, err)
	signed, err := sas.BlobSignatureValues{
		Protocol: sas.ProtocolHTTPSandHTTP, ExpiryTime: time.Now().UTC().Add(time.Hour), ContainerName: a.Container,
		Permissions: (&sas.ContainerPermissions{Read: true, Add: true, Create: true, Write: true, Delete: true, List: true}).String(),
	}.SignWithSharedKey(key)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "sas")
	require.NoError(t, os.WriteFile(file, []byte(signed.Encode()), 0o600))
	a.Auth = azstorage.Auth{Method: azstorage.SAS, SASFile: file}
	s, err := Open(t.Context(), Config{Account: a, Limits: azurite.Unlimited()})
	require.NoError(t, err)
	w, err := s.OpenWriter(t.Context(), 1, rt.Spec())
	require.NoError(t, err)
	defer func() { require.NoError(t, w.Close()) }()
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
	require.NoError(t, s.Remove(t.Context(), rt.Spec().Machine, 1))
}
