package controlapi

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAnInventoryIsBounded(t *testing.T) {
	small := Inventory{Hostname: "db-1", Disks: []InventoryDisk{{Path: "/dev/sda", Parts: []InventoryPart{{Name: "sda1", Mounts: []string{"/"}}}}}}
	before, err := json.Marshal(small)
	require.NoError(t, err)
	small.Bound()
	after, err := json.Marshal(small)
	require.NoError(t, err)
	require.JSONEq(t, string(before), string(after), "what fits stays as it is")

	long := strings.Repeat("€", 1000)
	many := make([]string, 100)
	for i := range many {
		many[i] = long
	}
	huge := Inventory{Hostname: long, Tracker: long}
	for range 100 {
		d := InventoryDisk{Path: long, Serial: long, Why: long, Paths: append([]string(nil), many...)}
		for range 100 {
			d.Parts = append(d.Parts, InventoryPart{Name: long, Mounts: append([]string(nil), many...)})
		}
		huge.Disks = append(huge.Disks, d)
		huge.Preflight = append(huge.Preflight, Finding{What: long, Advice: long})
	}
	huge.Bound()
	b, err := json.Marshal(huge)
	require.NoError(t, err)
	require.LessOrEqual(t, len(b), MaxInventory)
	require.True(t, huge.Truncated)
	require.NotEmpty(t, huge.Disks)
	require.Len(t, huge.Preflight, maxFindings)
	require.NotContains(t, string(b), "\ufffd", "texts are cut between characters")
}
