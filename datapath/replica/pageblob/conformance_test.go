package pageblob

import (
	"flag"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"drover/datapath/replica"
	"drover/datapath/replica/replicatest"
	"drover/tests/azurite"
)

// modelChecks are the random lives that the model plays here, unless -rapid.checks says
// otherwise: each costs half a second on the emulator.
const modelChecks = "4"

func TestMain(m *testing.M) {
	if err := flag.Set("rapid.checks", modelChecks); err != nil { // a default: the command line is read later
		panic(err)
	}
	goleak.VerifyTestMain(azurite.Main{M: m}, azurite.Idle()...)
}

// open opens the store that stands for the directory: a container of its own.
func open(t *testing.T, dir string) replica.Store { return openStore(t, dir) }

func openStore(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{Account: azurite.Shared(t).Account(t, dir), Limits: azurite.Unlimited()})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func TestConformance(t *testing.T) { replicatest.Run(t, open) }
