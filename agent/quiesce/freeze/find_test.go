package freeze

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/agent/mountinfo"
	"drover/tests/loop"
)

// machine is a machine as the kernel shows it, in a directory.
type machine struct {
	t     *testing.T
	dir   string
	nodes map[string]identity
	text  strings.Builder // mountinfo
	swaps strings.Builder
	open  map[string]string // devices that are written to, and by whom
	next  int
}

func newMachine(t *testing.T) *machine {
	m := &machine{t: t, dir: t.TempDir(), nodes: map[string]identity{}, open: map[string]string{}}
	m.swaps.WriteString("Filename\tType\tSize\tUsed\tPriority\n")
	return m
}

func (m *machine) put(path, content string) {
	m.t.Helper()
	path = filepath.Join(m.dir, path)
	require.NoError(m.t, os.MkdirAll(filepath.Dir(path), 0o700))
	require.NoError(m.t, os.WriteFile(path, []byte(content), 0o600))
}

func (m *machine) link(to, from string) {
	m.t.Helper()
	from = filepath.Join(m.dir, from)
	require.NoError(m.t, os.MkdirAll(filepath.Dir(from), 0o700))
	require.NoError(m.t, os.Symlink(filepath.Join(m.dir, to), from))
}

// device makes one: "sda", "sda/sda1" for a partition.
func (m *machine) device(path string, below ...string) {
	name := filepath.Base(path)
	dir := "devices/" + path
	n := mountinfo.Number{Major: 8, Minor: uint32(len(m.nodes))}
	m.put(dir+"/dev", n.String()+"\n")
	m.put(dir+"/size", "2048\n")
	m.put(dir+"/ro", "0\n")
	if strings.Contains(path, "/") {
		m.put(dir+"/partition", "1\n")
	}
	m.link(dir, "dev/block/"+n.String())
	m.link(dir, "class/block/"+name)
	if !strings.Contains(path, "/") {
		m.link(dir, "block/"+name)
	}
	for _, b := range below {
		m.put(dir+"/slaves/"+b, "")
		m.put(m.find(b)+"/holders/"+name, "")
	}
	m.nodes["/dev/"+name] = identity{block: true, number: n}
}

// find gives the directory of a device.
func (m *machine) find(name string) string {
	m.t.Helper()
	dir, err := os.Readlink(filepath.Join(m.dir, "class/block", name))
	require.NoError(m.t, err)
	return strings.TrimPrefix(dir, m.dir+"/")
}

// loop makes a loop device of a file on the file system of a device.
func (m *machine) loop(name, file, on string) {
	m.device(name)
	m.put(m.find(name)+"/loop/backing_file", file+"\n")
	if on != "" {
		m.nodes[file] = identity{regular: true, dev: m.nodes["/dev/"+on].number, ino: uint64(len(m.nodes))}
	}
}

func (m *machine) mount(device, fstype, point, super string) {
	m.next++
	n := m.nodes["/dev/"+device].number
	fmt.Fprintf(&m.text, "%d 1 %s / %s rw shared:1 - %s /dev/%s %s\n", m.next, n, point, fstype, device, super)
}

func (m *machine) line(text string) { m.text.WriteString(text + "\n") }

func (m *machine) swap(name string) { fmt.Fprintf(&m.swaps, "/dev/%s partition 1 0 -2\n", name) }

func (m *machine) set(disks ...string) *Set {
	m.t.Helper()
	s, err := m.try(disks...)
	require.NoError(m.t, err)
	return s
}

func (m *machine) try(disks ...string) (*Set, error) {
	m.put("mountinfo", m.text.String())
	m.put("swaps", m.swaps.String())
	f := &finder{devices: devices{m.dir, func(path string) (identity, error) {
		id, ok := m.nodes[path]
		if !ok {
			return identity{}, os.ErrNotExist
		}
		return id, nil
	}}, mountinfo: filepath.Join(m.dir, "mountinfo"), swaps: filepath.Join(m.dir, "swaps")}
	f.writers = func(wanted []mountinfo.Number) (map[mountinfo.Number]string, error) {
		out := map[mountinfo.Number]string{}
		for name, who := range m.open {
			for _, n := range wanted {
				if m.nodes["/dev/"+name].number == n {
					out[n] = who
				}
			}
		}
		return out, nil
	}
	var paths []string
	for _, d := range disks {
		if !strings.HasPrefix(d, "/") {
			d = "/dev/" + d
		}
		paths = append(paths, d)
	}
	return f.find(paths)
}

func pointsOf(s *Set) (out []string) {
	for _, f := range s.FileSystems {
		out = append(out, f.Point)
	}
	return out
}

// TestOrdinaryServer: EFI, root on LVM, swap, a data disk, network and memory.
func TestOrdinaryServer(t *testing.T) {
	m := newMachine(t)
	for _, d := range []string{"sda", "sda/sda1", "sda/sda2", "sda/sda3", "sda/sda4", "sdb", "sdc"} {
		m.device(d)
	}
	m.device("dm-0", "sda3")
	m.device("dm-1", "sda3")
	m.line(`1 1 0:20 / /proc rw - proc proc rw`)
	m.mount("dm-0", "ext4", "/", "rw,errors=remount-ro")
	m.mount("sda1", "vfat", "/boot/efi", "rw")
	m.mount("sda2", "ext4", "/boot", "rw")
	m.mount("sdb", "xfs", `/srv/my\040data`, "rw")
	m.mount("sdb", "xfs", "/also/here", "rw")
	m.mount("sdc", "ext4", "/other", "rw")
	m.line(`9 1 0:50 / /mnt/nfs rw - nfs4 server:/x rw`)
	m.line(`9 1 0:51 / /var/lib/docker/overlay rw - overlay overlay rw,lowerdir=/a:/b - c`)
	m.swap("dm-1")
	s := m.set("sda", "sdb")
	require.ElementsMatch(t, []string{"/", "/boot", "/srv/my data"}, pointsOf(s))
	require.Equal(t, []string{"/boot/efi (vfat) cannot be frozen", "dm-1 is swap"}, s.Notes)
	require.Empty(t, s.Loose, "sda4 is not in use")
	require.Equal(t, []string{"/other"}, pointsOf(m.set("sdc")))
	for i := 1; i < len(s.FileSystems); i++ {
		require.Less(t, s.FileSystems[i-1].Device.Minor, s.FileSystems[i].Device.Minor, "a fixed order")
	}
	require.Equal(t, []string{"/srv/my data", "/also/here"}, m.set("sdb").Left()[0].Points)
}

func TestReadOnlyIsSkipped(t *testing.T) {
	m := newMachine(t)
	m.device("sda")
	m.device("sdb")
	m.device("sdc")
	m.mount("sda", "ext4", "/ro", "ro")
	m.line("7 1 8:1 / /bind ro - ext4 /dev/sdb rw") // only this mount is
	m.put(m.find("sdc")+"/ro", "1\n")
	s := m.set("sda", "sdb", "sdc")
	require.Equal(t, []string{"/bind"}, pointsOf(s))
	require.Empty(t, s.Loose)
}

// TestStacks: what lies in a file on another file system is frozen before that.
func TestStacks(t *testing.T) {
	m := newMachine(t)
	m.device("sda")
	m.device("sda/sda1")
	m.loop("loop0", "/images/a", "sda1")
	m.loop("loop1", "/images/b", "loop0")
	m.device("md0", "loop1")
	m.mount("sda1", "ext4", "/", "rw")
	m.mount("loop0", "ext4", "/a", "rw")
	m.mount("md0", "xfs", "/b", "rw")
	require.Equal(t, []string{"/b", "/a", "/"}, pointsOf(m.set("sda")))
	require.Equal(t, []string{"/b", "/a"}, pointsOf(m.set("/images/a")), "the image file is the disk")
}

func TestMultipathAndLoopOfADevice(t *testing.T) {
	m := newMachine(t)
	m.device("sda")
	m.device("sdb")
	m.device("dm-0", "sda", "sdb")
	m.device("dm-1", "dm-0")
	m.loop("loop0", "/dev/dm-1", "")
	m.mount("loop0", "ext4", "/data", "rw")
	for _, disk := range []string{"dm-0", "sda", "sdb"} {
		s := m.set(disk)
		require.Equal(t, []string{"/data"}, pointsOf(s), disk)
		require.Empty(t, s.Loose, disk)
	}
}

func TestBtrfsOverSeveralDevices(t *testing.T) {
	m := newMachine(t)
	m.device("sda")
	m.device("sdb")
	m.put("fs/btrfs/uuid/devices/sda", "")
	m.put("fs/btrfs/uuid/devices/sdb", "")
	m.line("1 1 0:40 /root / rw - btrfs /dev/sda rw,subvol=/root")
	m.line("2 1 0:40 /home /home rw - btrfs /dev/sda rw,subvol=/home")
	s := m.set("sdb")
	require.Equal(t, []string{"/"}, pointsOf(s), "once")
	require.Equal(t, "0:40", s.Left()[0].Device)
	require.Empty(t, m.set("sda", "sdb").Loose)
}

// TestLoose: nothing that may be written to while all is frozen goes unsaid.
func TestLoose(t *testing.T) {
	m := newMachine(t)
	for _, d := range []string{"sda", "sda/sda1", "sda/sda2", "sda/sda3", "sdb", "sdc"} {
		m.device(d)
	}
	m.device("dm-0", "sdb")
	m.mount("sda1", "ext4", "/", "rw")
	m.open["sda2"], m.open["dm-0"], m.open["sdc"] = "process 7 (oracle)", "process 8 (asm)", "process 9 (dd)"
	m.put("fs/xfs/sda3/x", "")
	s := m.set("sda", "sdb")
	require.ElementsMatch(t, []string{"sda3, mounted where the agent does not see it", "sda2, which process 7 (oracle) writes to", "dm-0, which process 8 (asm) writes to"}, s.Loose)
	require.Equal(t, []string{"/"}, pointsOf(s))
	require.Empty(t, m.set("sdb").FileSystems)
}

func TestWhatHidesItsDevices(t *testing.T) {
	m := newMachine(t)
	m.device("sda")
	m.device("sdb")
	m.mount("sda", "ext4", "/", "rw")
	m.nodes["/images/c"] = identity{regular: true, ino: 99}
	require.Equal(t, []string{"an image file"}, m.set("/images/c", "sda", "sdb").Loose)
	m.device("drbd0")
	require.Equal(t, []string{"sdb, perhaps of DRBD"}, m.set("sda", "sdb").Loose)
	m.line("9 1 0:60 / /tank rw - zfs tank rw")
	require.Equal(t, []string{"sdb, perhaps of ZFS"}, m.set("sda", "sdb").Loose)
}

func TestDiskThatIsNone(t *testing.T) {
	m := newMachine(t)
	m.device("sda")
	_, err := m.try("sdz")
	require.ErrorIs(t, err, os.ErrNotExist)
	m.nodes["/dev/tty"] = identity{}
	_, err = m.try("/dev/tty")
	require.ErrorContains(t, err, "neither a block device nor an image file")
}

// TestVanishedDevice: a disk that was pulled under a mount is not ours to freeze.
func TestVanishedDevice(t *testing.T) {
	m := newMachine(t)
	m.device("sda")
	m.mount("sda", "ext4", "/", "rw")
	m.line("9 1 8:99 / /gone rw - ext4 /dev/sdx rw")
	require.Equal(t, []string{"/"}, pointsOf(m.set("sda")))
}

// TestHostileMountinfo: what cannot be read of the mounts is not guessed.
func TestHostileMountinfo(t *testing.T) {
	m := newMachine(t)
	m.device("sda")
	m.line("1 2 8:1 / / rw - ext4 /dev/sda rw")
	m.line("1 2 3 4 5 6")
	_, err := m.try("sda")
	require.ErrorContains(t, err, "is no mount")
}

// TestRealMachine: file systems as they are here, one in a file on the other.
func TestRealMachine(t *testing.T) {
	device, point := mounted(t, t.TempDir(), "ext4")
	inner := loop.Attach(t, sparse(t, point, 16<<20)).Path
	run(t, "mkfs.ext4", inner)
	upper := t.TempDir()
	run(t, "mount", inner, upper)
	t.Cleanup(func() { run(t, "umount", upper) })
	again := t.TempDir()
	run(t, "mount", "--bind", point, again)
	t.Cleanup(func() { run(t, "umount", again) })
	require.Equal(t, []string{upper, point}, pointsOf(find(t, device)))
	require.Equal(t, []string{upper}, pointsOf(find(t, inner)))

	_, z := prepared(t, 0, device)
	require.NoError(t, z.Freeze(t.Context()))
	_, err := z.Thaw()
	require.NoError(t, err)
}

// TestWriters: a device that somebody has open for writing, this process not counted.
func TestWriters(t *testing.T) {
	device := loop.Attach(t, sparse(t, t.TempDir(), 1<<20)).Path
	id, err := identify(device)
	require.NoError(t, err)
	got, err := writers([]mountinfo.Number{id.number})
	require.NoError(t, err)
	require.Empty(t, got)
	holdOpen(t, device)
	got, err = writers([]mountinfo.Number{id.number})
	require.NoError(t, err)
	require.Contains(t, got[id.number], "process ")
}
