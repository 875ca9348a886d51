package controlserver

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/agent/controlapi"
	"drover/tests/fuzz"
	"drover/worker/controlserver/admin"
)

// parsedSize is how much larger a parsed body is than its text, at most: an empty
// element of a list is three bytes.
const parsedSize = 100

// FuzzRequests takes anything for the body of each request.
func FuzzRequests(f *testing.F) {
	for name, v := range map[string]any{
		"enrol":     controlapi.EnrolRequest{Secret: "s", CSR: []byte{1}, Instance: "i", Version: "v", DataAddress: "h:1"},
		"heartbeat": controlapi.Heartbeat{Instance: "i", Inventory: &controlapi.Inventory{Hostname: "h", Disks: []controlapi.InventoryDisk{{Path: "/dev/sda"}}}},
		"token":     admin.TokenRequest{Name: "n"},
	} {
		b, err := json.Marshal(v)
		require.NoError(f, err)
		fuzz.Seed(f, name, b)
		fuzz.Seed(f, name+"-torn", b[:len(b)/2])
		fuzz.Seed(f, name+"-twice", append(b, b...))
	}
	fuzz.Seed(f, "null", []byte("null"))
	fuzz.Seed(f, "deep", []byte(`{"inventory":`+strings.Repeat("[", 20000)))
	fuzz.Seed(f, "many", []byte(`{"inventory":{"disks":[`+strings.Repeat("{},", 1000)+`{}]}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, v := range []any{new(controlapi.EnrolRequest), new(controlapi.RenewRequest), new(controlapi.Heartbeat), new(admin.TokenRequest), new(admin.RevokeRequest)} {
			fuzz.Alloc(t, parsedSize*len(body), func() {
				r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", bytes.NewReader(body))
				r.Body = http.MaxBytesReader(httptest.NewRecorder(), r.Body, controlapi.MaxBody)
				err := readBody(r, v)
				var refused *failure
				if err != nil && (!errors.As(err, &refused) || refused.status >= http.StatusInternalServerError) {
					t.Fatalf("not a refusal: %v", err)
				}
				require.Equal(t, err == nil, json.Unmarshal(body, v) == nil, "nothing may follow the request")
			})
		}
	})
}
