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
	var read Inventory
	require.NoError(t, json.Unmarshal(b, &read))
	require.Equal(t, huge, read)
}

func TestAnInventoryThatIsTooLongIsNotRead(t *testing.T) {
	for text, want := range map[string]string{
		`{"disks":[` + strings.Repeat(`{},`, maxDisks) + `{}]}`:             "65 disks, at most 64",
		`{"disks":[{"parts":[` + strings.Repeat(`{},`, maxParts) + `{}]}]}`: "33 parts of a disk, at most 32",
		`{"preflight":[` + strings.Repeat(`{},`, maxFindings) + `{}]}`:      "25 findings, at most 24",
		`{"disks":[{"size":"x"}]}`:                                          "cannot unmarshal",
		`{"disks":[3]}`:                                                     "cannot unmarshal",
		`{"disks":{}}`:                                                      "cannot unmarshal",
	} {
		var in Inventory
		require.ErrorContains(t, json.Unmarshal([]byte(text), &in), want)
	}
	var in Inventory
	require.NoError(t, json.Unmarshal([]byte(`{"hostname":"h","kernel":"k","disks":[{"path":"/dev/sda","size":7,"parts":[{"name":"sda1"}]}],"preflight":[{"check":"c"}]}`), &in))
	require.Equal(t, Inventory{Hostname: "h", Kernel: "k", Preflight: []Finding{{Check: "c"}},
		Disks: []InventoryDisk{{Path: "/dev/sda", Size: 7, Parts: []InventoryPart{{Name: "sda1"}}}}}, in)
}
