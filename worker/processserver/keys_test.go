package processserver

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/agent/controlapi"
	"drover/datapath/ident"
)

// source answers with the current key's id, or fails.
type source struct {
	current string
	err     error
	calls   int
	size    int
}

func (s *source) Key(_ context.Context, _ ident.MachineID, id string) (controlapi.Key, error) {
	s.calls++
	if s.err != nil {
		return controlapi.Key{}, s.err
	}
	if id == "" {
		id = s.current
	}
	return controlapi.Key{ID: id, Secret: bytes.Repeat([]byte{id[0]}, s.size)}, nil
}

func TestKeys(t *testing.T) {
	m := ident.NewMachineID("vc", "vm")
	s := &source{current: "a", size: controlapi.KeySize}
	k := newKeys(s)
	id, err := k.Current(t.Context(), m)
	require.NoError(t, err)
	require.Equal(t, "a", id)
	key, err := k.Key(t.Context(), m, "a")
	require.NoError(t, err)
	require.Equal(t, byte('a'), key.Secret[31])
	require.Equal(t, 1, s.calls, "the second came from memory")

	s.current = "b"
	id, err = k.Current(t.Context(), m)
	require.NoError(t, err)
	require.Equal(t, "b", id, "a new key is noticed")

	s.err = errors.New("connection refused")
	id, err = k.Current(t.Context(), m)
	require.NoError(t, err, "the configuration server is away: the last one is used")
	require.Equal(t, "b", id)
	_, err = k.Key(t.Context(), m, "unknown")
	require.ErrorIs(t, err, s.err)

	s.err = &controlapi.Error{Code: "DRV-1003", Message: "revoked"}
	_, err = k.Current(t.Context(), m)
	require.ErrorIs(t, err, s.err, "a refusal is an answer")
}

func TestKeysOfWrongSize(t *testing.T) {
	k := newKeys(&source{current: "a", size: 16})
	_, err := k.Current(t.Context(), ident.NewMachineID("vc", "vm"))
	require.ErrorContains(t, err, "it has 16 bytes, want 32")
}

func TestKeysAreBounded(t *testing.T) {
	k := newKeys(&source{current: "a", size: controlapi.KeySize})
	for i := range maxKeys + 10 {
		_, err := k.Current(t.Context(), ident.MachineID{byte(i >> 8), byte(i)})
		require.NoError(t, err)
	}
	require.Len(t, k.held, maxKeys)
	require.Len(t, k.current, maxKeys)
}
