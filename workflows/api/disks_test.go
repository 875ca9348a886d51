package api

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/ident"
)

// TestGuestDisks: every disk of vCenter and of the guest once, with what becomes of it.
func TestGuestDisks(t *testing.T) {
	m := ident.NewMachineID("v", "db-1")
	disk := func(n string, size int64) VMDisk {
		return VMDisk{ID: ident.NewDiskID(m, n), Label: "Hard disk " + n, BackingUUID: "6000C29A-" + n, Size: size}
	}
	s := MachineStatus{
		VM:        VM{Machine: m, Disks: []VMDisk{disk("1", 10), disk("2", 20), disk("3", 10), disk("4", 10), disk("5", 10), disk("6", 10), disk("9", 7)}},
		Protected: []VMDisk{disk("1", 10), disk("2", 10), disk("3", 20), disk("4", 10), disk("7", 10)},
		Excluded:  []string{"Hard disk 6"},
	}
	require.Empty(t, s.GuestDisks(), "no agent has said anything")
	s.Agent = &AgentReport{Instance: "i", Disks: []AgentDisk{
		{BackingUUID: "6000c29a1", Path: "/dev/sda", Size: 10, Protected: true},
		{BackingUUID: "6000c29a2", Path: "/dev/sdb", Size: 20},
		{BackingUUID: "6000c29a3", Path: "/dev/sdc", Size: 10},
		{BackingUUID: "6000c29a4", Path: "/dev/sdd", Size: 10, Gone: time.Unix(1, 0)},
		{BackingUUID: "6000c29a5", Path: "/dev/sde", Size: 10},
		{BackingUUID: "6000c29a6", Path: "/dev/sdf", Size: 10},
		{BackingUUID: "6000c29a1", Path: "/dev/sdg", Size: 10}, // a disk that says it is another one
		{Path: "/dev/sdh", Size: 5, Removable: true},
		{BackingUUID: "6000c29a8", Path: "/dev/sdi", Size: 5, Gone: time.Unix(1, 0)},
	}}
	got := map[string]DiskState{}
	for _, d := range s.GuestDisks() {
		got[d.Path+" "+d.Label] = d.State
	}
	require.Equal(t, map[string]DiskState{
		"/dev/sda Hard disk 1": DiskProtected, "/dev/sdb Hard disk 2": DiskGrown, "/dev/sdc Hard disk 3": DiskShrunk,
		"/dev/sdd Hard disk 4": DiskMissing, "/dev/sde Hard disk 5": DiskNew, "/dev/sdf Hard disk 6": DiskExcluded, "/dev/sdg ": DiskOther,
		"/dev/sdh ": DiskOther, "/dev/sdi ": DiskGone, " Hard disk 7": DiskMissing, " Hard disk 9": DiskNew,
	}, got)

	// What does not fit into a report may be there all the same.
	s.Agent.Truncated = true
	for _, d := range s.GuestDisks() {
		require.False(t, d.Unseen && d.State == DiskMissing, "%v", d)
	}
}

// TestGuestDisksOfTheTarget: the copy that was failed over has disks of other names.
func TestGuestDisksOfTheTarget(t *testing.T) {
	m := ident.NewMachineID("v", "db-1")
	d := VMDisk{ID: ident.NewDiskID(m, "1"), Label: "Hard disk 1", BackingUUID: "a", Size: 10}
	s := MachineStatus{VM: VM{Machine: m, Disks: []VMDisk{d}}, Protected: []VMDisk{d},
		Target: &TargetMachine{Instance: "CLOUD", Disks: []TargetDisk{{ID: d.ID, BackingUUID: "cloud-a"}}},
		Agent:  &AgentReport{Instance: "cloud", Disks: []AgentDisk{{BackingUUID: "cloud-a", Path: "/dev/sda", Size: 10}}}}
	got := s.GuestDisks()
	require.Len(t, got, 1)
	require.Equal(t, DiskProtected, got[0].State)
}
