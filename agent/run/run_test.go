package run

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"drover/agent/config"
	"drover/agent/controlapi"
	"drover/datapath/ident"
	"drover/datapath/stream"
	"drover/tests/ports"
	"drover/tests/rig"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// office is a configuration server with one assignment.
type office struct {
	mu      sync.Mutex
	current controlapi.Assignment
	changed chan struct{}
	beats   []controlapi.Heartbeat
}

func (o *office) assign(a controlapi.Assignment) {
	o.mu.Lock()
	defer o.mu.Unlock()
	a.Version = o.current.Version + 1
	o.current = a
	close(o.changed)
	o.changed = make(chan struct{})
}

// newest gives the newest heartbeat.
func (o *office) newest() (hb controlapi.Heartbeat) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if n := len(o.beats); n > 0 {
		hb = o.beats[n-1]
	}
	return hb
}

// inventory gives the newest that was told: a heartbeat names it only if it changed.
func (o *office) inventory(t *testing.T) *controlapi.Inventory {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, hb := range slices.Backward(o.beats) {
		if hb.Inventory != nil {
			return hb.Inventory
		}
	}
	require.Fail(t, "no heartbeat named the inventory")
	return nil
}

func (o *office) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/v1/heartbeat":
		var hb controlapi.Heartbeat
		if err := json.NewDecoder(r.Body).Decode(&hb); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		o.mu.Lock()
		o.beats = append(o.beats, hb)
		o.mu.Unlock()
		_ = json.NewEncoder(w).Encode(controlapi.HeartbeatResponse{Time: time.Now()})
	case "/v1/assignment":
		have, _ := strconv.ParseUint(r.URL.Query().Get("version"), 10, 64)
		wait, _ := time.ParseDuration(r.URL.Query().Get("wait"))
		o.mu.Lock()
		a, changed := o.current, o.changed
		o.mu.Unlock()
		if a.Version == have {
			select {
			case <-changed:
			case <-r.Context().Done():
			case <-time.After(wait):
			}
			o.mu.Lock()
			a = o.current
			o.mu.Unlock()
		}
		_ = json.NewEncoder(w).Encode(a)
	default:
		http.NotFound(w, r)
	}
}

// open serves the office until the test ends, and gives its address.
func (o *office) open(t *testing.T, r *rig.Rig) string {
	t.Helper()
	o.changed = make(chan struct{})
	address, err := ports.Free()
	require.NoError(t, err)
	listener, err := net.Listen("tcp", address)
	require.NoError(t, err)
	srv := &http.Server{Handler: o, TLSConfig: r.CA.Server(ident.Peer{Role: ident.RoleConfigurationServer, Name: "cs"}), ReadHeaderTimeout: time.Second,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.ServeTLS(listener, "", "") }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return "https://" + address
}

// enrolled keeps an identity of the rig's machine as an enrolment would.
func enrolled(t *testing.T, r *rig.Rig, state string) {
	t.Helper()
	dir := filepath.Join(state, "identity")
	require.NoError(t, os.MkdirAll(dir, 0o700))
	r.CA.Save(state)
	authority, err := os.ReadFile(filepath.Join(state, "ca.crt"))
	require.NoError(t, err)
	cert := r.CA.Issue(r.AgentPeer())
	key, err := x509.MarshalECPrivateKey(cert.PrivateKey.(*ecdsa.PrivateKey))
	require.NoError(t, err)
	for name, block := range map[string]*pem.Block{
		"ca.pem": {Type: "CERTIFICATE", Bytes: authority}, "cert.pem": {Type: "CERTIFICATE", Bytes: cert.Certificate[0]},
		"key.pem": {Type: "EC PRIVATE KEY", Bytes: key},
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600))
	}
}

// TestAgentDoesWhatItIsAssigned: it stands by, streams, stands by again, and leaves
// nothing behind when it is stopped.
func TestAgentDoesWhatItIsAssigned(t *testing.T) {
	r := rig.New(t, 64*rig.Block)
	r.Write(0, 3, []byte(strings.Repeat("x", rig.Block)))
	r.StartServer()
	r.Grant(1, 20*time.Millisecond)
	var cs office
	metrics, err := ports.Free()
	require.NoError(t, err)
	uuid := r.Disks[0].BackingUUID
	c := &config.Config{ConfigServer: cs.open(t, r), State: t.TempDir(), Instance: rig.Instance, Metrics: metrics, Disks: map[string]string{uuid: r.Path(uuid)}}
	enrolled(t, r, c.State)

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, c, "test", r.Log(), nil) }()
	stop := sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-done)
	})
	defer stop()
	heard := func(word string) {
		t.Helper()
		require.Eventually(t, func() bool { return cs.newest().State == word }, rig.Limit, 5*time.Millisecond, word)
	}
	heard("standby")
	require.Contains(t, cs.inventory(t).Disks, controlapi.InventoryDisk{BackingUUID: uuid, Path: r.Path(uuid), Size: 64 * rig.Block,
		Why: "this machine is not assigned to replicate"})

	work := controlapi.Assignment{Action: controlapi.ActionReplicate, Machine: r.Machine, Epoch: 1, Instance: rig.Instance, Server: rig.ServerPeer.Name,
		Role: rig.ServerPeer.Role, Address: r.Address, Disks: r.Disks}
	another := work
	another.Instance = "4c4c4544-0042-3510-8054-000000000000"
	cs.assign(another)
	time.Sleep(100 * time.Millisecond)
	require.False(t, r.Status().Connected, "another copy of the machine is meant")

	cs.assign(work)
	r.Await("points", func(st stream.Status) bool { return st.Complete && st.Points > 0 })
	require.Equal(t, r.Digest(), r.DigestAt(r.AfterNow()))
	require.Eventually(t, func() bool {
		res, err := http.Get("http://" + metrics + "/metrics") //nolint:gosec,noctx // our own address
		return err == nil && res.Body.Close() == nil && res.StatusCode == http.StatusOK
	}, rig.Limit, 5*time.Millisecond)
	http.DefaultClient.CloseIdleConnections()

	cs.assign(controlapi.Assignment{Action: controlapi.ActionStandby, Machine: r.Machine, Reason: "paused"})
	r.Await("the end of the stream", func(st stream.Status) bool { return !st.Connected })
	stop()
}

// TestStandbyTriesTheServer: an agent that stands by tells whether it reaches the server
// that it is asked to try, and with what error it does not; a copy on other hardware is
// not meant.
func TestStandbyTriesTheServer(t *testing.T) {
	r := rig.New(t, 16*rig.Block)
	r.StartServer()
	nobody, err := ports.Free()
	require.NoError(t, err)
	var cs office
	c := &config.Config{ConfigServer: cs.open(t, r), State: t.TempDir(), Instance: rig.Instance}
	enrolled(t, r, c.State)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, c, "test", r.Log(), nil) }()
	defer func() { cancel(); require.NoError(t, <-done) }()
	ask := func(instance, address, via string) {
		cs.assign(controlapi.Assignment{Action: controlapi.ActionStandby, Machine: r.Machine, Reach: true, Instance: instance,
			Server: rig.ServerPeer.Name, Role: rig.ServerPeer.Role, Address: address, Via: via})
	}
	says := func() controlapi.Reached {
		t.Helper()
		require.Eventually(t, func() bool { return cs.newest().Reached != nil }, rig.Limit, 5*time.Millisecond)
		hb := cs.newest()
		require.Equal(t, "standby", hb.State)
		return *hb.Reached
	}
	ask("4c4c4544-0042-3510-8054-000000000000", r.Address, "")
	require.Eventually(t, func() bool { return cs.newest().Detail == "another copy of this machine is assigned" }, rig.Limit, 5*time.Millisecond)
	ask(rig.Instance, nobody, "")
	got := says()
	require.Equal(t, nobody, got.Address)
	require.Contains(t, got.Error, "connection refused")
	ask(rig.Instance, r.Address, "")
	require.Eventually(t, func() bool { return says() == controlapi.Reached{Address: r.Address} }, rig.Limit, 5*time.Millisecond)
	ask(rig.Instance, r.Address, nobody)
	require.Eventually(t, func() bool { return says().Via == nobody && strings.Contains(says().Error, "connection refused") }, rig.Limit, 5*time.Millisecond)
	cs.assign(controlapi.Assignment{Action: controlapi.ActionStandby, Machine: r.Machine})
	require.Eventually(t, func() bool { return cs.newest().Reached == nil }, rig.Limit, 5*time.Millisecond)
}

// An agent that is told to stop while it waits for a configuration server that is away
// stops at once, with or without an identity.
func TestAgentStopsWhileItWaits(t *testing.T) {
	r := rig.New(t, 16*rig.Block)
	nobody, err := ports.Free()
	require.NoError(t, err)
	token := filepath.Join(t.TempDir(), "token")
	for _, known := range []bool{false, true} {
		c := &config.Config{ConfigServer: "https://" + nobody, State: t.TempDir(), Instance: rig.Instance, TokenFile: token}
		require.NoError(t, os.WriteFile(token, []byte(strings.Repeat("ab", 32)+"."+strings.Repeat("s", 43)+"\n"), 0o600))
		if known {
			enrolled(t, r, c.State)
		}
		ctx, cancel := context.WithCancel(t.Context())
		timer := time.AfterFunc(300*time.Millisecond, cancel)
		require.NoError(t, Run(ctx, c, "test", r.Log(), nil), "with an identity: %t", known)
		require.Error(t, ctx.Err(), "it waited")
		timer.Stop()
		cancel()
	}
}

func TestAgentWithoutAnythingToEnrolWith(t *testing.T) {
	c := &config.Config{ConfigServer: "https://127.0.0.1:1", State: t.TempDir(), Instance: rig.Instance}
	require.ErrorContains(t, Run(t.Context(), c, "test", slog.New(slog.DiscardHandler), nil), "issue a token")
	c.Proxy = "ftp://proxy"
	require.Error(t, Run(t.Context(), c, "test", slog.New(slog.DiscardHandler), nil))
}

func TestMemoryLimitGrowsWithTheDisks(t *testing.T) {
	require.Equal(t, int64(64<<20), MemoryLimit(64<<20, nil))
	tib := MemoryLimit(64<<20, []controlapi.Disk{{Size: 1 << 40}, {Size: -1}})
	require.Equal(t, int64(64<<20+(1<<40)/4096*66/8), tib)
	require.Equal(t, int64(48<<20), HeapLimit(64<<20, nil), "there is a program beside the heap")
}

// What threads that are made later inherit is what the guest's own programs get past.
func TestTheGuestGoesFirst(t *testing.T) {
	before, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	require.NoError(t, err)
	require.NoError(t, yieldToOthers(19))
	after, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	require.NoError(t, err)
	require.Equal(t, 1, after, "the call gives 20 - nice")
	require.GreaterOrEqual(t, before, after)
	class, _, e := unix.Syscall(unix.SYS_IOPRIO_GET, ioWhoProcess, 0, 0)
	require.Zero(t, e)
	require.Equal(t, uintptr(ioBestEffort|ioLowest), class)
}
