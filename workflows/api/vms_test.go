package api

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/ident"
)

// TestVMList: what thousands of VMs are fits into a history, and comes back as it was.
func TestVMList(t *testing.T) {
	for _, n := range []int{0, 1, 2000, 10_000} {
		list := VMList{}
		for i := range n {
			name := fmt.Sprintf("vm-%05d", i)
			m := ident.NewMachineID("vc", name)
			list = append(list, VM{Machine: m, VCenter: "vc-1", InstanceUUID: m.String(), BIOSUUID: m.String(), Name: name, GuestID: "ubuntu64Guest", CPUs: 2,
				Disks: []VMDisk{{ID: ident.NewDiskID(m, name), Label: "Hard disk 1", BackingUUID: ident.NewDiskID(m, name).String(), File: "[local-1] " + name + "/" + name + ".vmdk", Size: 1 << 30}},
				NICs:  []VMNIC{{Label: "Network adapter 1", MAC: "00:50:56:00:00:00", Network: "VM Network"}},
				Tags:  tagsOf(i)})
		}
		b, err := json.Marshal(DiscoveryStatus{VMs: list})
		require.NoError(t, err)
		require.Less(t, len(b), 1900<<10, "%d VMs", n)
		var back DiscoveryStatus
		require.NoError(t, json.Unmarshal(b, &back))
		require.Equal(t, list, back.VMs)
	}
	var l VMList
	require.NoError(t, json.Unmarshal([]byte(`[{"name":"of before"}]`), &l))
	require.Nil(t, l[0].Tags)
	for _, bad := range []string{`"%"`, `"aGFsbG8="`, `7`} {
		require.Error(t, json.Unmarshal([]byte(bad), &l), bad)
	}
}

// tagsOf gives each VM five tags, of some hundreds there are.
func tagsOf(i int) (out []VMTag) {
	for n, of := range []int{3, 7, 12, 40, 300} {
		out = append(out, NewVMTag(fmt.Sprintf("category-%d", n), fmt.Sprintf("value-%d", i*7919%of)))
	}
	return out
}

// TestVMTag: what vCenter says is of bounded length, and can be shown.
func TestVMTag(t *testing.T) {
	require.Equal(t, "tier/gold", NewVMTag("tier", "gold").String())
	long := NewVMTag(strings.Repeat("ä", 65), "a\x1b[2Jb\xff\n")
	require.Equal(t, strings.Repeat("ä", 63)+"…", long.Category)
	require.Equal(t, "a?[2Jb\ufffd?", long.Name)
	require.Equal(t, strings.Repeat("b", 64), NewVMTag("", strings.Repeat("b", 64)).Name)
}
