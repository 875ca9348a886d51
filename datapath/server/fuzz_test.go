package server

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/ident"
	"drover/datapath/replica/replicatest"
	"drover/datapath/stream"
	"drover/datapath/vfs"
	"drover/tests/fuzz"
)

// parsedSize is how much larger parsed JSON is than its text, at most: an empty disk
// is three bytes of a list, and lists grow in steps.
const parsedSize = 300

// FuzzGrant reads anything as the record of a machine. What is accepted is a grant
// that would be taken, and is kept the same.
func FuzzGrant(f *testing.F) {
	spec := replicatest.Spec()
	good, err := json.Marshal(record{Held: true, Broken: &stream.Broken{Code: codeDamaged, Cause: "c", Since: time.Unix(1, 0).UTC()},
		Grant: stream.Grant{Epoch: 3, Instance: "i", Spec: spec, Cut: time.Minute, LossLimit: time.Hour}})
	require.NoError(f, err)
	fuzz.Seed(f, "good", good)
	fuzz.Seed(f, "torn", good[:len(good)/2])
	fuzz.Seed(f, "null", []byte("null"))
	fuzz.Seed(f, "no-cadence", []byte(strings.Replace(string(good), `"cut":60000000000`, `"cut":0`, 1)))
	fuzz.Seed(f, "other-machine", []byte(strings.Replace(string(good), spec.Machine.String(), ident.NewMachineID("a", "b").String(), 1)))
	s := &Server{Config: Config{StateDir: f.TempDir(), FS: vfs.OS}}
	require.NoError(f, os.MkdirAll(s.grantDir(), 0o700))
	f.Fuzz(func(t *testing.T, b []byte) {
		require.NoError(t, os.WriteFile(s.grantFile(spec.Machine), b, 0o600))
		var all []record
		var err error
		fuzz.Alloc(t, parsedSize*len(b), func() { all, err = s.readGrants() })
		if err != nil {
			require.ErrorContains(t, err, "it is damaged")
			require.NotContains(t, err.Error(), "%!")
			return
		}
		require.Len(t, all, 1)
		require.NoError(t, checkGrant(all[0].Grant))
		require.NoError(t, s.saveGrant(all[0]))
		again, err := s.readGrants()
		require.NoError(t, err)
		require.NoError(t, s.saveGrant(again[0]))
		require.Len(t, again, 1)
	})
}
