package disk

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/agent/controlapi"
)

// tree is a machine's description of its block devices, as the kernel and udev give it.
type tree struct {
	t   *testing.T
	dir string
	System
}

func newTree(t *testing.T) *tree {
	dir := t.TempDir()
	tr := &tree{t: t, dir: dir, System: System{Sys: dir + "/sys", Proc: dir + "/proc/self", Root: dir + "/proc", Udev: dir + "/udev"}}
	require.NoError(t, os.MkdirAll(dir+"/sys/block", 0o700))
	tr.file("proc/self/mountinfo", "")
	return tr
}

func (tr *tree) file(name, content string) {
	path := filepath.Join(tr.dir, name)
	require.NoError(tr.t, os.MkdirAll(filepath.Dir(path), 0o700))
	require.NoError(tr.t, os.WriteFile(path, []byte(content), 0o600))
}

// block adds a device; attributes are "name=value".
func (tr *tree) block(name, dev, sectors string, attrs ...string) {
	for _, a := range append([]string{"dev=" + dev, "size=" + sectors, "ro=0"}, attrs...) {
		k, v, _ := strings.Cut(a, "=")
		tr.file("sys/block/"+name+"/"+k, v+"\n")
	}
}

func (tr *tree) on(name string, below ...string) {
	for _, b := range below {
		tr.file("sys/block/"+name+"/slaves/"+b, "")
	}
}

const (
	wwnA = "naa.6000c29a" + bare + "a"
	wwnB = "naa.6000c29b" + bare + "b"
)

// server is a machine with most of what servers have.
func server(t *testing.T) *tree {
	tr := newTree(t)
	tr.block("sda", "8:0", "2097152", "removable=0", "queue/rotational=1", "device/wwid="+wwnA, "device/vendor=VMware", "device/model=Virtual disk",
		"sda1/partition=1", "sda1/dev=8:1", "sda1/size=4096", "sda2/partition=2", "sda2/dev=8:2", "sda2/size=2000000")
	tr.file("sys/block/sda/device/vpd_pg80", "\x00\x80\x00\x046000c29a\x00")
	tr.block("dm-0", "254:0", "1000000", "dm/name=vg-root", "dm/uuid=LVM-abc")
	tr.on("dm-0", "sda2")
	tr.block("dm-1", "254:1", "900000", "dm/name=secret", "dm/uuid=CRYPT-LUKS2-x")
	tr.on("dm-1", "dm-0")
	tr.block("dm-2", "254:2", "2048", "dm/name=vg-swap", "dm/uuid=LVM-def")
	tr.on("dm-2", "sda2")
	// A disk with two paths under multipath, two paths without, and md over two partitions.
	for _, name := range []string{"sdb", "sdc"} {
		tr.block(name, map[string]string{"sdb": "8:16", "sdc": "8:32"}[name], "4194304", "device/wwid="+wwnB)
	}
	tr.block("dm-3", "254:3", "4194304", "dm/name=mpatha", "dm/uuid=mpath-36000c29b"+bare+"b")
	tr.on("dm-3", "sdb", "sdc")
	for name, dev := range map[string]string{"sdd": "8:48", "sde": "8:64"} {
		tr.block(name, dev, "8192", "device/wwid=naa.5000c500a1b2c3d4")
	}
	tr.block("vda", "253:0", "6144", "serial=disk-7")
	tr.block("nvme0n1", "259:0", "10240", "wwid=eui.0025388b710116a9", "device/serial=S4EV ")
	tr.block("nvme0c0n1", "259:1", "10240", "hidden=1")
	tr.block("sdf", "8:80", "1024", "removable=1")
	tr.block("sdg", "8:96", "0", "removable=1")
	for name, dev := range map[string]string{"loop0": "7:0", "ram0": "1:0", "zram0": "252:0", "sr0": "11:0"} {
		tr.block(name, dev, "2048")
	}
	tr.block("md0", "9:0", "5000", "md/level=raid1")
	tr.on("md0", "vda", "nvme0n1")
	tr.file("proc/self/mountinfo", strings.Join([]string{
		"22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/mapper/secret rw",
		"23 22 8:1 / /boot rw shared:2 - ext2 /dev/sda1 rw",
		"24 22 0:21 / /proc rw - proc proc rw",
		"25 22 0:50 /sub /data rw - btrfs /dev/mapper/mpatha rw",
		`26 22 9:0 / /srv/with\040space rw - xfs /dev/md0 rw`, "nonsense", ""}, "\n"))
	tr.file("proc/swaps", "Filename Type Size Used Priority\n/dev/dm-2 partition 1 0 -2\n")
	tr.file("udev/b8:80", "S:disk/by-id/x\nE:ID_FS_TYPE=vfat\nE:ID_FS_VERSION=FAT32\n")
	return tr
}

func TestDiscover(t *testing.T) {
	all, err := server(t).Discover()
	require.NoError(t, err)
	byPath := map[string]controlapi.InventoryDisk{}
	for _, d := range all {
		byPath[d.Path] = d
	}
	require.Len(t, all, 6, "each disk once, and nothing that is none: %v", byPath)
	require.Equal(t, controlapi.InventoryDisk{
		BackingUUID: "6000c29a" + bare + "a", Path: "/dev/sda", Size: 2097152 * 512, Serial: "6000c29a", WWN: wwnA, Model: "VMware Virtual disk", Rotational: true,
		Parts: []controlapi.InventoryPart{
			{Name: "sda1", Kind: "partition", Size: 4096 * 512, FileSystem: "ext2", Mounts: []string{"/boot"}, On: []string{"sda"}},
			{Name: "sda2", Kind: "partition", Size: 2000000 * 512, On: []string{"sda"}},
			{Name: "vg-root", Kind: "lvm", Size: 1000000 * 512, On: []string{"sda2"}},
			{Name: "vg-swap", Kind: "lvm", Size: 2048 * 512, Swap: true, On: []string{"sda2"}},
			{Name: "secret", Kind: "crypt", Size: 900000 * 512, FileSystem: "ext4", Mounts: []string{"/"}, On: []string{"vg-root"}},
		},
	}, byPath["/dev/sda"])
	mpath := byPath["/dev/mapper/mpatha"]
	require.Equal(t, "6000c29b"+bare+"b", mpath.BackingUUID)
	require.Equal(t, []string{"/dev/sdb", "/dev/sdc"}, mpath.Paths)
	require.Equal(t, []string{"/data"}, mpath.Parts[0].Mounts)
	require.Empty(t, mpath.Why)
	require.Equal(t, []string{"/dev/sdd", "/dev/sde"}, byPath["/dev/sdd"].Paths)
	require.Contains(t, byPath["/dev/sdd"].Why, "set up multipathd")
	require.Equal(t, "disk-7", byPath["/dev/vda"].Serial)
	require.Equal(t, []controlapi.InventoryPart{{Name: "md0", Kind: "raid", Size: 5000 * 512, FileSystem: "xfs", Mounts: []string{"/srv/with space"},
		On: []string{"nvme0n1", "vda"}}}, byPath["/dev/nvme0n1"].Parts)
	require.Equal(t, "S4EV", byPath["/dev/nvme0n1"].Serial)
	require.True(t, byPath["/dev/sdf"].Removable)
	require.Equal(t, "vfat", byPath["/dev/sdf"].Parts[0].FileSystem)
}

func TestTheKernelNamesDisksWhereThereIsNoLink(t *testing.T) {
	f := Finder{ByID: t.TempDir(), System: server(t).System}
	path, err := f.Find(uuidB)
	require.NoError(t, err)
	require.Equal(t, "/dev/mapper/mpatha", path)
	_, err = f.Find(uuidC)
	require.ErrorIs(t, err, ErrNotFound)
}

// What the agent says of its disks while they are protected, grow, go and come.
func TestWatch(t *testing.T) {
	tr := server(t)
	image := filepath.Join(t.TempDir(), "image")
	require.NoError(t, os.WriteFile(image, make([]byte, 8192), 0o600))
	w := Watch{Finder: Finder{System: tr.System, Paths: map[string]string{"vda-uuid": "/dev/vda", "image-uuid": image, "lost": image + "-none"}}}
	as := controlapi.Assignment{Action: controlapi.ActionReplicate, Disks: []controlapi.Disk{
		{BackingUUID: uuidA, Size: 2097152 * 512}, {BackingUUID: "vda-uuid", Size: 1}, {BackingUUID: "nowhere", Size: 7}}}
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	look := func() map[string]controlapi.InventoryDisk {
		all, err := w.Look(now, as)
		require.NoError(t, err)
		out := map[string]controlapi.InventoryDisk{}
		for _, d := range all {
			out[first(d.BackingUUID, d.Path)] = d
		}
		require.Len(t, out, len(all), "each once")
		return out
	}
	sda := "6000c29a" + bare + "a"
	got := look()
	require.True(t, got[sda].Protected)
	require.Empty(t, got[sda].Why)
	require.Contains(t, got["vda-uuid"].Why, "it has 3145728 bytes, 1 are protected")
	require.Equal(t, int64(8192), got["image-uuid"].Size)
	require.Contains(t, got["lost"].Why, "named in the configuration, but")
	require.Contains(t, got["6000c29b"+bare+"b"].Why, "excluded, or added")
	require.Equal(t, "removable", got["/dev/sdf"].Why)
	require.Contains(t, got["/dev/nvme0n1"].Why, "disk.EnableUUID")
	require.True(t, got["nowhere"].Protected)
	require.Equal(t, now, got["nowhere"].Gone)

	now = now.Add(time.Minute)
	tr.file("sys/block/sda/size", "4194304\n")
	require.NoError(t, os.RemoveAll(filepath.Join(tr.dir, "sys/block/vda")))
	tr.block("vdb", "253:16", "2048", "serial=new")
	w.Finder.Paths = nil
	got = look()
	require.Contains(t, got[sda].Why, "it has 2147483648 bytes, 1073741824 are protected")
	require.Equal(t, now, got["vda-uuid"].Gone)
	require.Contains(t, got["vda-uuid"].Why, "it is protected, but not on this machine")
	require.Contains(t, got, "/dev/vdb")

	as.Disks = as.Disks[:1]
	got = look()
	require.False(t, got["vda-uuid"].Protected)
	now = now.Add(keepGone + time.Hour)
	require.NotContains(t, look(), "vda-uuid", "forgotten after a day")
	require.NoError(t, os.RemoveAll(tr.Sys))
	all, err := w.Look(now, as)
	require.Error(t, err)
	for _, d := range all {
		require.True(t, d.Gone.IsZero(), "what cannot be listed has not gone")
	}
}

func TestManyDisksThatGoAreBounded(t *testing.T) {
	w := Watch{seen: map[string]controlapi.InventoryDisk{}}
	for i := range 100 {
		p := "/dev/sd" + string(rune('a'+i))
		w.seen[p] = controlapi.InventoryDisk{Path: p}
	}
	require.Len(t, w.gone(time.Now(), nil, nil), maxGone)
	require.Len(t, w.seen, maxGone)
}

func TestThisMachine(t *testing.T) {
	all, err := System{}.Discover()
	require.NoError(t, err)
	for _, d := range all {
		require.Positive(t, d.Size, d.Path)
	}
}
