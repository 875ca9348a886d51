package controlserver_test

import (
	"encoding/pem"
	"testing"

	"github.com/stretchr/testify/require"
)

func pemDER(t *testing.T, b []byte) []byte {
	t.Helper()
	block, _ := pem.Decode(b)
	require.NotNil(t, block)
	return block.Bytes
}
