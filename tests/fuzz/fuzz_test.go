package fuzz

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// witness notes a failure.
type witness struct {
	testing.TB
	failed string
}

func (*witness) Helper() {}

func (w *witness) Fatalf(format string, args ...any) { w.failed = fmt.Sprintf(format, args...) }

var sink []byte

func TestAllocSeesWhatIsTooMuch(t *testing.T) {
	w := &witness{TB: t}
	Alloc(w, 1<<20, func() { sink = make([]byte, 1<<20) })
	require.Empty(t, w.failed)
	Alloc(w, 1<<20, func() { sink = make([]byte, 2<<20) })
	require.Contains(t, w.failed, "bytes were allocated, at most 1310720 are allowed")
}

func TestKindSeesStrangers(t *testing.T) {
	w, known := &witness{TB: t}, errors.New("known")
	Kind(w, nil, known)
	Kind(w, fmt.Errorf("x: %w", known), known)
	require.Empty(t, w.failed)
	Kind(w, errors.New("stranger"), known)
	require.Contains(t, w.failed, "stranger")
}
