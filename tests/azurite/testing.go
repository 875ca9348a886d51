package azurite

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"drover/datapath/azstorage"
)

// OnDisk is the environment's variable that has tests keep the emulator's data on disk
// instead of in memory, when it is not empty.
const OnDisk = "DROVER_AZURITE_DISK"

// shared is the emulator that the tests of one package use together.
var shared struct {
	once   sync.Once
	server *Server
	err    error
}

// Shared gives an emulator that all tests of the package use; Main stops it. A test is
// skipped when it is not installed, and fails where it must be.
func Shared(t testing.TB) *Server {
	t.Helper()
	shared.once.Do(func() {
		var dir string
		if os.Getenv(OnDisk) != "" {
			dir, shared.err = os.MkdirTemp("", "drover-azurite-") // it lives longer than the test
		}
		if shared.err == nil {
			shared.server, shared.err = Start(t.Context(), dir)
		}
	})
	Need(t, shared.err)
	return shared.server
}

// Need skips the test, or fails it, for an error of Start.
func Need(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, ErrMissing) && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Main runs a package's tests and then stops the shared emulator.
type Main struct{ M *testing.M }

// Run is what TestMain asks for.
func (m Main) Run() int {
	code := m.M.Run()
	if s := shared.server; s != nil && s.cmd != nil {
		err := s.Stop()
		if s.dir != "" {
			err = errors.Join(err, os.RemoveAll(s.dir))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

// Idle are the goroutines of connections that the SDK keeps for the next request.
func Idle() []goleak.Option {
	return []goleak.Option{
		goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"),
	}
}

// Account is a container of the emulator, made when absent: the same for the same name.
func (s *Server) Account(t testing.TB, name string) azstorage.Account {
	t.Helper()
	a := AccountAt(s.Endpoint(), name)
	c, err := azstorage.Open(a)
	if err == nil {
		err = c.Make(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// AccountAt is a container by the name, at an endpoint: the emulator's, or a proxy's in
// front of it.
func AccountAt(endpoint, name string) azstorage.Account {
	h := sha256.Sum256([]byte(name))
	return azstorage.Account{
		Endpoint: endpoint, Container: "t-" + hex.EncodeToString(h[:8]), Auth: azstorage.Auth{Method: azstorage.EmulatorKey},
		Retry: azstorage.Retry{Times: 6, First: 20 * time.Millisecond, Most: 10 * time.Second, Try: 30 * time.Second},
	}
}

// Unlimited are limits that no emulator reaches.
func Unlimited() azstorage.Limits { return azstorage.Limits{Bytes: 1 << 40, Requests: 1 << 20} }
