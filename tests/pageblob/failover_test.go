package pageblob

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/activities/azure"
	"drover/activities/target"
	"drover/datapath/azstorage"
	"drover/datapath/cachestore"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/replica/pageblob"
	pipe "drover/datapath/stream"
	"drover/tests/azurearm"
	"drover/tests/azurite"
	"drover/tests/rig"
	"drover/workflows/api"
)

const recoveryGroup = "recovery"

// carrier takes snapshots of the store to the server that stands for Azure's machines,
// which is another one than the emulator of storage.
type carrier struct {
	store *pageblob.Store
	box   *azstorage.Container
	to    *azurearm.Server
	urls  map[string]string
}

func (c *carrier) SnapshotURL(ctx context.Context, m ident.MachineID, p replica.Point, d ident.DiskID) (string, int64, error) {
	address, size, err := c.store.SnapshotURL(ctx, m, p, d)
	if err != nil || c.urls[address] != "" {
		return c.urls[address], size, err
	}
	u, err := url.Parse(strings.TrimPrefix(address, c.box.Name()+"/"))
	if err != nil {
		return "", 0, err
	}
	b, err := c.box.NewBlobClient(u.Path).WithSnapshot(u.Query().Get("snapshot"))
	if err != nil {
		return "", 0, err
	}
	r, err := b.DownloadStream(ctx, nil)
	if err != nil {
		return "", 0, err
	}
	content, err := io.ReadAll(r.Body)
	if err == nil {
		err = r.Body.Close()
	}
	c.urls[address] = c.to.AddSnapshot("seeds", "disks", u.Path, content)
	return c.urls[address], size, err
}

// cloudOf is Azure as the target, with disks made in the way; empty: sent by us.
func cloudOf(t *testing.T, s *azurearm.Server, way string, from azure.Snapshots) *azure.Cloud {
	t.Helper()
	dir := t.TempDir()
	ca, secret := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "secret")
	require.NoError(t, os.WriteFile(ca, s.CA(), 0o600))
	require.NoError(t, os.WriteFile(secret, []byte(azurearm.Secret), 0o600))
	e := azure.Endpoints{Authority: s.URL, Manager: s.URL, CAFile: ca}
	cloud, err := e.Configuration()
	require.NoError(t, err)
	transport, err := e.Transport()
	require.NoError(t, err)
	auth := azure.Auth{Method: azure.ClientSecret, TenantID: azurearm.Tenant, ClientID: azurearm.ClientID, SecretFile: secret}
	credential, err := auth.Credential(cloud, transport, true)
	require.NoError(t, err)
	config := azure.Config{
		Subscription: azurearm.Subscription, ResourceGroup: recoveryGroup, Location: azurearm.Location,
		Credential: credential, Cloud: cloud, Transport: transport, Poll: time.Millisecond, Logger: slog.New(slog.DiscardHandler),
	}
	if way != "" {
		config.Way, config.Snapshots = way, from
		config.Account = azure.Account{ID: azurearm.ID("storage", "Microsoft.Storage/storageAccounts", "seeds"), Endpoint: s.URL + "/blob/seeds"}
	}
	c, err := azure.Open(config)
	require.NoError(t, err)
	return c
}

// TestFailoverFromPageBlobs: a machine is replicated to page blobs and fails over to
// machines in Azure at an older recovery point, in every way that disks are made: the
// managed disks are what the source's were at that point, byte by byte.
func TestFailoverFromPageBlobs(t *testing.T) {
	az := azurite.Shared(t)
	account, sets := az.Account(t, t.TempDir()), az.Account(t, t.TempDir())
	sizes := []int64{21 << 20, 22<<20 + 512} // 20 MiB is the least of an upload
	r := rig.New(t, sizes...)
	r.Stores = func() (replica.Store, cachestore.Store) { return stores(t, account, sets) }
	rnd := rand.New(rand.NewPCG(3, 4))
	scribble(r, rnd, sizes)
	r.StartServer()
	r.Grant(1, cadence)
	r.StartAgent(1)
	scribble(r, rnd, sizes)
	point, want := r.AfterNow(), r.Digest()
	scribble(r, rnd, sizes)
	later := r.AfterNow()
	require.NotEqual(t, want, r.Digest())
	r.StopAgent()
	r.Await("all is applied", func(st pipe.Status) bool { return st.Applied == st.Spooled && st.BacklogSets == 0 })
	r.StopServer()
	require.Greater(t, later.ID, point.ID)

	store, err := pageblob.Open(t.Context(), pageblob.Config{Account: account, Limits: azurite.Unlimited()})
	require.NoError(t, err)
	box, err := azstorage.Open(account)
	require.NoError(t, err)
	for _, way := range []string{azure.WayImport, azure.WayUpload, ""} {
		t.Run("by "+way, func(t *testing.T) {
			s := azurearm.Start()
			defer s.Close()
			s.VNet(recoveryGroup, "prod", "servers", "10.0.0.0/24")
			a := target.New(cloudOf(t, s, way, &carrier{store, box, s, map[string]string{}}), store)
			in := api.CreateMachineInput{
				Machine: r.Machine, Name: "db-1", Run: "failover/1", Point: point, CPUs: 2, Memory: 4096, Firmware: "efi",
				GuestID: "debian12_64Guest", Network: "prod", Target: api.Target{Network: "prod", Subnet: "servers"},
			}
			for _, d := range r.Disks {
				in.Disks = append(in.Disks, api.VMDisk{ID: d.ID, Size: d.Size})
			}
			require.NoError(t, a.CheckNetwork(t.Context(), api.CheckNetworkInput{Network: "prod", For: &in}))
			_, err := a.CreateMachine(t.Context(), in)
			require.NoError(t, err)
			m, err := a.StartMachine(t.Context(), api.TargetRef{Name: in.Name, Run: in.Run})
			require.NoError(t, err)
			require.True(t, m.Running)
			h := sha256.New()
			for i, d := range m.Disks {
				content := s.DiskContent(d.Location)
				h.Write(content[:sizes[i]])
				require.Equal(t, make([]byte, int64(len(content))-sizes[i]), content[sizes[i]:], "filled up with zeros")
			}
			require.Equal(t, want, hex.EncodeToString(h.Sum(nil)))
		})
	}
}
