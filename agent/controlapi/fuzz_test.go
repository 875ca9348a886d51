package controlapi

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/tests/fuzz"
)

// parsedSize is how much larger a parsed body is than its text, at most: an empty
// element of a list is three bytes.
const parsedSize = 100

// FuzzAnswer reads anything as an answer of the configuration server.
func FuzzAnswer(f *testing.F) {
	fuzz.Seed(f, "assignment", 200, []byte(`{"version":3,"action":"replicate","machine":"6f0f2c5e-5d1e-4c59-9a4b-6d726f766572","epoch":2,"disks":[{"id":"6f0f2c5e-5d1e-4c59-9a4b-6d726f766572","size":512}]}`))
	fuzz.Seed(f, "key", 200, []byte(`{"id":"k1","secret":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}`))
	fuzz.Seed(f, "error", 403, []byte(`{"code":"DRV-1004","message":"revoked"}`))
	fuzz.Seed(f, "proxy", 502, []byte("<html>Bad gateway"))
	fuzz.Seed(f, "null", 200, []byte("null"))
	fuzz.Seed(f, "deep", 200, []byte(strings.Repeat("[", 20000)))
	fuzz.Seed(f, "many", 200, []byte(`{"disks":[`+strings.Repeat("{},", 1000)+`{}]}`))
	c := NewClient("https://cs.test:443", nil)
	f.Fuzz(func(t *testing.T, status int, b []byte) {
		for _, out := range []any{new(Assignment), new(EnrolResponse), new(HeartbeatResponse), new(Key)} {
			fuzz.Alloc(t, parsedSize*len(b), func() {
				err := c.decode("test", status, b, out)
				var e *Error
				if err != nil && (!errors.As(err, &e) || e.Code == "") {
					t.Fatalf("an error of no known kind: %v", err)
				}
				require.Equal(t, err == nil, status >= 200 && status <= 299 && e == nil)
			})
		}
	})
}
