package file

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"drover/datapath/replica"
	"drover/datapath/replica/replicatest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, dir string) replica.Store {
	t.Helper()
	s, err := Open(dir)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func TestConformance(t *testing.T) { replicatest.Run(t, open) }
