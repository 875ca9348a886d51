package pageblob

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"drover/datapath/azstorage"
	"drover/datapath/cachestore"
	"drover/datapath/cachestore/blockblob"
	"drover/datapath/ident"
	"drover/datapath/recover"
	"drover/datapath/replica"
	"drover/datapath/replica/pageblob"
	pipe "drover/datapath/stream"
	"drover/tests/azurite"
	"drover/tests/rig"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(azurite.Main{M: m}, azurite.Idle()...) }

const cadence = 100 * time.Millisecond

// stores opens containers for replicas and change sets, by an endpoint each.
func stores(t *testing.T, replicas, sets azstorage.Account) (replica.Store, cachestore.Store) {
	t.Helper()
	s, err := pageblob.Open(t.Context(), pageblob.Config{Account: replicas, Limits: azurite.Unlimited()})
	require.NoError(t, err)
	c, err := blockblob.Open(t.Context(), blockblob.Config{Account: sets})
	require.NoError(t, err)
	return s, c
}

// scribble changes some blocks of the disks, to noise or to zeros.
func scribble(r *rig.Rig, rnd *rand.Rand, sizes []int64) {
	for range 1 + rnd.IntN(20) {
		disk := rnd.IntN(len(sizes))
		data := make([]byte, rig.Block)
		if rnd.IntN(4) > 0 {
			for i := range data {
				data[i] = byte(rnd.Uint32())
			}
		}
		r.Write(disk, rnd.Int64N(sizes[disk]/rig.Block), data)
	}
}

// TestProtectReplicateRecover: what drover-recover writes out from the containers alone
// is what the disks were at each point, byte by byte, while the account is busy, loses
// replies and the server is restarted.
func TestProtectReplicateRecover(t *testing.T) {
	az := azurite.Shared(t)
	name := t.TempDir()
	account := az.Account(t, name+"-replicas")
	az.Account(t, name+"-sets")
	proxy := azurite.NewProxy(t, az)
	sizes := []int64{3<<20 + 512, 9 << 20}
	r := rig.New(t, sizes...)
	r.Stores = func() (replica.Store, cachestore.Store) {
		return stores(t, azurite.AccountAt(proxy.Endpoint(), name+"-replicas"), azurite.AccountAt(proxy.Endpoint(), name+"-sets"))
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	scribble(r, rnd, sizes)
	r.StartServer()
	r.Grant(1, cadence)
	r.StartAgent(1)
	want := map[ident.Seq]string{}
	tell := func() {
		t.Helper()
		scribble(r, rnd, sizes)
		want[r.AfterNow().ID] = r.Digest()
	}
	tell()
	var n atomic.Int64
	proxy.Set(func(*http.Request) azurite.Fault {
		switch n.Add(1) % 23 {
		case 7:
			return azurite.Fault{Status: http.StatusServiceUnavailable, Code: "ServerBusy"}
		case 15:
			return azurite.Fault{LoseReply: true}
		}
		return azurite.Fault{}
	})
	tell()
	r.StopServer()
	r.StartServer()
	tell()
	proxy.Set(nil)
	tell()
	r.StopAgent()
	st := r.Await("all is applied", func(st pipe.Status) bool { return st.Applied == st.Spooled && st.BacklogSets == 0 })
	r.StopServer()
	_, cache := stores(t, account, azurite.AccountAt(az.Endpoint(), name+"-sets"))
	left, err := cache.List(t.Context(), r.Machine)
	require.NoError(t, err)
	for _, set := range left {
		require.Greater(t, set.Seq, st.Applied.Seq, "what is applied is in no cache")
	}
	require.Len(t, want, 4)
	for id, digest := range want {
		require.Equal(t, digest, recovered(t, account, r, id), "point %d", id)
	}
	checkVHD(t, account, r)
}

// recovered has drover-recover write a point's disks, and gives their digest.
func recovered(t *testing.T, a azstorage.Account, r *rig.Rig, point ident.Seq) string {
	t.Helper()
	s, err := pageblob.Open(t.Context(), pageblob.Config{Account: a, Limits: azurite.Unlimited()})
	require.NoError(t, err)
	st, err := recover.Find(t.Context(), s, r.Machine.String())
	require.NoError(t, err)
	p, err := recover.Point(st, point)
	require.NoError(t, err)
	disks, err := recover.Write(t.Context(), s, st, p, t.TempDir(), nil)
	require.NoError(t, err)
	var paths []string
	for _, d := range disks {
		paths = append(paths, d.Path)
	}
	return rig.DigestOf(t, paths...)
}

// checkVHD downloads the blobs as they are, as who imports them would: another program
// reads them as fixed VHDs.
func checkVHD(t *testing.T, a azstorage.Account, r *rig.Rig) {
	t.Helper()
	tool, err := exec.LookPath("qemu-img")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("qemu-img is missing")
		}
		t.Log("qemu-img is missing: the VHDs are not looked at")
		return
	}
	c, err := azstorage.Open(a)
	require.NoError(t, err)
	for i, d := range r.Disks {
		b, _, err := c.Get(t.Context(), "machines/"+r.Machine.String()+"/"+d.ID.String()+".vhd", 64<<20)
		require.NoError(t, err)
		dir := t.TempDir()
		path, raw := filepath.Join(dir, "disk.vhd"), filepath.Join(dir, "disk.raw")
		require.NoError(t, os.WriteFile(path, b, 0o600))
		out, err := exec.CommandContext(t.Context(), tool, "convert", "-f", "vpc", "-O", "raw", path, raw).CombinedOutput()
		require.NoError(t, err, string(out))
		got, err := os.ReadFile(raw)
		require.NoError(t, err)
		want, err := os.ReadFile(r.Path(d.BackingUUID))
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got[:len(want)]), "disk %d", i)
		require.Zero(t, len(got)%(1<<20))
		require.Equal(t, make([]byte, len(got)-len(want)), got[len(want):], "it is filled up with zeros")
	}
}

// TestRecoverProgram runs the program itself on the containers.
func TestRecoverProgram(t *testing.T) {
	az := azurite.Shared(t)
	a := az.Account(t, t.TempDir())
	r := rig.New(t, 1<<20)
	s, c := stores(t, a, az.Account(t, t.TempDir()))
	r.Stores = func() (replica.Store, cachestore.Store) { return s, c }
	r.Write(0, 3, bytes.Repeat([]byte{7}, rig.Block))
	r.StartServer()
	r.Grant(1, cadence)
	r.StartAgent(1)
	r.Await("a point", func(st pipe.Status) bool { return st.LastPoint > 0 })
	r.StopAgent()
	r.StopServer()
	bin, out := filepath.Join(t.TempDir(), "drover-recover"), t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "drover/datapath/cmd/drover-recover")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	text, err := build.CombinedOutput()
	require.NoError(t, err, string(text))
	cmd := exec.CommandContext(t.Context(), bin, "write", r.Machine.String(), "--store", a.Endpoint+"/"+a.Container, "--azure-auth", "emulator-key", "--out", out, "--json")
	text, err = cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Fatal(string(exit.Stderr))
	}
	require.NoError(t, err)
	var disks []recover.Disk
	require.NoError(t, json.Unmarshal(text, &disks))
	require.Equal(t, r.Digest(), rig.DigestOf(t, disks[0].Path))
	text, err = exec.CommandContext(t.Context(), bin, "machines", "--store", "http://storage.example/seed", "--azure-auth", "emulator-key").CombinedOutput()
	require.Error(t, err)
	require.True(t, strings.Contains(string(text), "want https"), string(text))
}

// TestGrantsWhileSetsAreApplied: a policy that changes brings other documents while the
// pipeline applies. Neither change of the replica may take the other for another owner's,
// or lose it.
func TestGrantsWhileSetsAreApplied(t *testing.T) {
	az := azurite.Shared(t)
	account, sets := az.Account(t, t.TempDir()), az.Account(t, t.TempDir())
	sizes := []int64{3 << 20}
	r := rig.New(t, sizes...)
	r.Stores = func() (replica.Store, cachestore.Store) { return stores(t, account, sets) }
	rnd := rand.New(rand.NewPCG(5, 6))
	r.StartServer()
	r.Grant(1, cadence)
	r.StartAgent(1)
	r.Await("complete", func(st pipe.Status) bool { return st.Complete })
	for i := range 60 {
		scribble(r, rnd, sizes)
		r.Documents = map[string]string{"policy": strconv.Itoa(i)}
		r.Grant(1, cadence)
	}
	p := r.AfterNow()
	require.Equal(t, r.Digest(), r.DigestAt(p))
	r.StopAgent()
	r.Await("all is applied", func(st pipe.Status) bool { return st.Applied == st.Spooled && st.BacklogSets == 0 })
	st, err := r.Reader().State(t.Context())
	require.NoError(t, err)
	require.Equal(t, r.Documents, st.Spec.Documents)
	require.Equal(t, uint32(1), st.Generation, "no resync was needed")
}
