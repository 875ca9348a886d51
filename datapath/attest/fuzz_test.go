package attest

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/tests/fuzz"
)

// parsedSize is how much larger a parsed record is than its text, at most: a disk of a
// list is two bytes of text, and lists grow in steps.
const parsedSize = 400

// FuzzCheck reads anything as a signed record. Nothing but what the authority's server
// has signed is taken for one, and nothing takes more memory than its text allows.
func FuzzCheck(f *testing.F) {
	a := newAuthority(f)
	s := sign(f, sample(), a.issue(server, 0))
	good, err := json.Marshal(s)
	require.NoError(f, err)
	indented, err := json.MarshalIndent(s, "", "  ")
	require.NoError(f, err)
	fuzz.Seed(f, "good", good)
	fuzz.Seed(f, "indented", indented)
	fuzz.Seed(f, "torn", good[:len(good)/2])
	fuzz.Seed(f, "null", []byte("null"))
	fuzz.Seed(f, "empty-record", []byte(`{"record":{},"chain":["AA=="],"signature":"AA=="}`))
	fuzz.Seed(f, "many-disks", []byte(`{"record":{"version":1,"disks":[{},{},{},{}]},"chain":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzz.Alloc(t, parsedSize*len(b), func() {
			s, err := Parse(b)
			if err != nil {
				return
			}
			r, signer, err := Check(s, a.pool)
			if err != nil {
				require.NotContains(t, err.Error(), "%!")
				return
			}
			require.Equal(t, server, signer)
			require.Equal(t, sample(), r)
		})
	})
}
