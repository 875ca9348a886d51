package file

import (
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/replica"
	"drover/datapath/replica/replicatest"
)

func open(t *testing.T, dir string) replica.Store {
	t.Helper()
	s, err := Open(dir)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func TestConformance(t *testing.T) { replicatest.Run(t, open) }
