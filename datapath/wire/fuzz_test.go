package wire

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/tests/fuzz"
)

// payloadAlloc is what a payload of n bytes may make a decoder allocate: its
// extents and positions, larger in memory than on the wire, and its sums.
func payloadAlloc(n int) int { return 128<<10 + 4*n }

func seedName(i int, s sample) string {
	return fmt.Sprintf("%02d-%s", i, strings.ReplaceAll(s.String(), "/", "-"))
}

// FuzzReceive gives Receive anything, as it is and with the header made right, so
// that the payloads reach the decoders. What is accepted has only one encoding.
func FuzzReceive(f *testing.F) {
	for i, s := range append(samples(), pings()...) {
		st := frameState{from: s.from, nonce: nonceFor(s.m)}
		fuzz.Seed(f, seedName(i, s), st.encode(f, s.m), s.from == fromServer, st.nonce)
	}
	fuzz.Seed(f, "empty", []byte{}, false, uint64(0))
	f.Fuzz(func(t *testing.T, b []byte, toAgent bool, nonce uint64) {
		self := fromServer
		if toAgent {
			self = fromAgent
		}
		c := play(self, nonce, b)
		fuzz.Alloc(t, MaxFrame+payloadAlloc(len(b)), func() {
			for {
				if _, err := c.Receive(); err != nil {
					requireProtocol(t, err, io.EOF, io.ErrUnexpectedEOF)
					break
				}
			}
		})
		if len(b) < headerBytes {
			return
		}
		payload := b[headerBytes:]
		m, err := play(self, nonce, (&frameState{nonce: nonce}).encodeRaw(Kind(b[offKind]), payload)).Receive()
		if err == nil {
			again, err := Marshal(m)
			require.NoError(t, err)
			require.True(t, bytes.Equal(payload, again))
		}
	})
}

// requireProtocol fails unless the error is a ProtocolError or one of the others.
func requireProtocol(t *testing.T, err error, others ...error) {
	t.Helper()
	var p *ProtocolError
	if !errors.As(err, &p) {
		fuzz.Kind(t, err, others...)
	}
}

// FuzzPayload gives the decoder of each kind any payload. What is accepted
// marshals to the same bytes.
func FuzzPayload(f *testing.F) {
	for i, s := range append(samples(), pings()...) {
		payload, err := Marshal(s.m)
		require.NoError(f, err)
		fuzz.Seed(f, seedName(i, s), uint8(s.m.kind()), payload)
		fuzz.Seed(f, seedName(i, s)+"-short", uint8(s.m.kind()), payload[:len(payload)/2])
	}
	f.Fuzz(func(t *testing.T, kind uint8, payload []byte) {
		var m Message
		var err error
		fuzz.Alloc(t, payloadAlloc(len(payload)), func() { m, err = Unmarshal(Kind(kind), payload) })
		requireProtocol(t, err)
		if err != nil {
			return
		}
		again, err := Marshal(m)
		require.NoError(t, err)
		require.True(t, bytes.Equal(payload, again))
	})
}
