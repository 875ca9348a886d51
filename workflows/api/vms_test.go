package api

import (
	"encoding/json"
	"fmt"
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
				NICs:  []VMNIC{{Label: "Network adapter 1", MAC: "00:50:56:00:00:00", Network: "VM Network"}}})
		}
		b, err := json.Marshal(DiscoveryStatus{VMs: list})
		require.NoError(t, err)
		require.Less(t, len(b), 1900<<10, "%d VMs", n)
		var back DiscoveryStatus
		require.NoError(t, json.Unmarshal(b, &back))
		require.Equal(t, list, back.VMs)
	}
	var l VMList
	for _, bad := range []string{`"%"`, `"aGFsbG8="`, `7`} {
		require.Error(t, json.Unmarshal([]byte(bad), &l), bad)
	}
}
