package preflight

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"drover/agent/controlapi"
)

const kernel = "6.1.0-44-amd64"

// tree writes the files of an installed system.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	}
	return dir
}

// cpio is an archive with empty files of these names and one with content.
func cpio(names ...string) []byte {
	var b bytes.Buffer
	for _, name := range append(names, trailer) {
		content := ""
		if name == "init" {
			content = "#!/bin/sh\n"
		}
		fmt.Fprintf(&b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", 1, 0o100644, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name + "\x00")
		b.Write(make([]byte, padding(int64(b.Len()))))
		b.WriteString(content)
		b.Write(make([]byte, padding(int64(b.Len()))))
	}
	b.Write(make([]byte, 512-b.Len()%512))
	return b.Bytes()
}

func zipped(t *testing.T, b []byte) string {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, err := z.Write(b)
	require.NoError(t, err)
	require.NoError(t, z.Close())
	return out.String()
}

func zstded(t *testing.T, b []byte) string {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	defer func() { _ = z.Close() }()
	return string(z.EncodeAll(b, nil))
}

var (
	microcode = string(cpio("kernel/x86/microcode/GenuineIntel.bin"))
	drivers   = cpio("init", "usr/lib/modules/"+kernel+"/kernel/drivers/hv/hv_vmbus.ko", "lib/modules/"+kernel+"/kernel/drivers/scsi/hv_storvsc.ko.xz", "etc/fstab")
	none      = cpio("init", "usr/lib/modules/"+kernel+"/kernel/drivers/scsi/vmw_pvscsi.ko")
)

func of(t *testing.T, files map[string]string, check string) controlapi.Finding {
	t.Helper()
	all, err := Check(tree(t, files), kernel)
	require.NoError(t, err)
	require.Len(t, all, 7)
	for _, f := range all {
		if f.Check == check {
			require.Equal(t, f.Level != controlapi.LevelOK, f.Advice != "", "advice where there is something to do: %+v", f)
			return f
		}
	}
	t.Fatalf("no check %s", check)
	return controlapi.Finding{}
}

func TestDrivers(t *testing.T) {
	image := "boot/initrd.img-" + kernel
	for name, c := range map[string]struct {
		files       map[string]string
		level, what string
	}{
		"plain":     {map[string]string{image: string(drivers)}, "ok", "has the drivers"},
		"gzip":      {map[string]string{image: zipped(t, drivers)}, "ok", "has the drivers"},
		"zstd":      {map[string]string{image: microcode + zstded(t, drivers)}, "ok", "has the drivers"},
		"two parts": {map[string]string{image: microcode + string(drivers)}, "ok", "has the drivers"},
		"dracut's":  {map[string]string{"boot/initramfs-" + kernel + ".img": microcode + zipped(t, drivers)}, "ok", "has the drivers"},
		"missing":   {map[string]string{image: microcode + zstded(t, none)}, "fail", "has no hv_vmbus, hv_storvsc: the guest would not find its disk"},
		"built in": {map[string]string{"lib/modules/" + kernel + "/modules.builtin": "kernel/drivers/hv/hv_vmbus.ko\nkernel/drivers/scsi/hv_storvsc.ko\nkernel/drivers/net/hyperv/hv-netvsc.ko\n"},
			"ok", "built in"},
		"some built in": {map[string]string{"lib/modules/" + kernel + "/modules.builtin": "kernel/drivers/hv/hv_vmbus.ko\n", image: zipped(t, none)}, "fail", "has no hv_storvsc:"},
		"none at all":   {map[string]string{}, "fail", "no initramfs"},
		"xz":            {map[string]string{image: microcode + "\xfd7zXZ\x00..."}, "warn", "not read here (it begins with fd 37"},
		"torn":          {map[string]string{image: string(drivers[:300])}, "warn", "cannot be read"},
		"torn zstd":     {map[string]string{image: zstded(t, drivers)[:40]}, "warn", "cannot be read"},
		"hostile name":  {map[string]string{image: string(drivers[:94]) + "FFFFFFFF00000000"}, "warn", "a name of 4294967295 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			f := of(t, c.files, "hyper-v-drivers")
			require.Equal(t, c.level, f.Level, f.What)
			require.Contains(t, f.What, c.what)
		})
	}
}

func TestConfiguration(t *testing.T) {
	for name, c := range map[string]struct {
		check, file, content, level, what string
	}{
		"uuid":         {"fstab", "etc/fstab", "# /dev/sda1 was this\nUUID=1 / ext4 defaults 0 1\n/dev/mapper/vg-home /home xfs\n/dev/vg/x /x xfs\ntmpfs /tmp tmpfs\n", "ok", ""},
		"by name":      {"fstab", "etc/fstab", "/dev/sda1 / ext4 defaults 0 1\n/dev/sdb1 /data xfs nofail 0 0\n", "fail", "by the name of a device: /dev/sda1 on /"},
		"by path":      {"fstab", "etc/fstab", "/dev/disk/by-path/pci-0 /x ext4\n", "fail", "by-path"},
		"no fstab":     {"fstab", "etc/hosts", "", "warn", "no /etc/fstab"},
		"grub by name": {"boot-root", "boot/grub/grub.cfg", "linux /vmlinuz root=/dev/vda1 ro\n", "fail", "root=/dev/vda1"},
		"cmdline":      {"boot-root", "proc/cmdline", "BOOT_IMAGE=/vmlinuz root=UUID=5 ro", "ok", ""},
		"serial":       {"serial-console", "etc/default/grub", `GRUB_CMDLINE_LINUX="console=tty1 console=ttyS0,115200"`, "ok", ""},
		"entries":      {"serial-console", "boot/loader/entries/a.conf", "options root=UUID=5 console=ttyS0", "ok", ""},
		"no serial":    {"serial-console", "proc/cmdline", "quiet", "warn", "does not write to a serial console"},
		"dhcp":         {"network", "etc/network/interfaces", "auto lo\niface lo inet loopback\niface eth0 inet dhcp\n", "ok", ""},
		"static":       {"network", "etc/network/interfaces.d/eth0", "iface eth0 inet static\n address 10.0.0.1\n", "warn", "/etc/network/interfaces.d/eth0"},
		"netplan":      {"network", "etc/netplan/50.yaml", "network:\n  ethernets:\n    a:\n      addresses: [10.0.0.1/24]\n", "warn", "50.yaml"},
		"netplan dhcp": {"network", "etc/netplan/50.yaml", "network:\n  ethernets:\n    a:\n      dhcp4: true\n", "ok", ""},
		"ifcfg":        {"network", "etc/sysconfig/network-scripts/ifcfg-eth0", "BOOTPROTO=none\nIPADDR=10.0.0.1\n", "warn", "ifcfg-eth0"},
		"ifcfg dhcp":   {"network", "etc/sysconfig/network-scripts/ifcfg-eth0", "BOOTPROTO=dhcp\n", "ok", ""},
		"nm":           {"network", "etc/NetworkManager/system-connections/x.nmconnection", "[ipv4]\nmethod=manual\n", "warn", "x.nmconnection"},
		"networkd":     {"network", "etc/systemd/network/10.network", "[Network]\nAddress=10.0.0.1/24\n", "warn", "10.network"},
		"nothing":      {"network", "etc/hosts", "", "warn", "not clear"},
		"persistent":   {"network-names", "etc/udev/rules.d/70-persistent-net.rules", `SUBSYSTEM=="net", ATTR{address}=="00:50:56:01", NAME="eth0"`, "warn", "70-persistent"},
		"hwaddr":       {"network-names", "etc/sysconfig/network-scripts/ifcfg-eth0", "HWADDR=00:50\n", "warn", "ifcfg-eth0"},
		"macaddress":   {"network-names", "etc/netplan/50.yaml", "network:\n  ethernets:\n    a:\n      match:\n        macaddress: 00:50\n", "warn", "50.yaml"},
		"no names":     {"network-names", "etc/hosts", "", "ok", ""},
		"agent":        {"cloud-agent", "usr/sbin/waagent", "", "ok", "Azure Linux agent"},
		"cloud-init":   {"cloud-agent", "usr/bin/cloud-init", "", "ok", "cloud-init"},
		"no agent":     {"cloud-agent", "etc/hosts", "", "warn", "neither"},
	} {
		t.Run(name, func(t *testing.T) {
			f := of(t, map[string]string{c.file: c.content}, c.check)
			require.Equal(t, c.level, f.Level, f.What)
			require.Contains(t, f.What, c.what)
		})
	}
}

// Links out of the root lead nowhere.
func TestNothingOutsideIsRead(t *testing.T) {
	outside := tree(t, map[string]string{"fstab": "UUID=1 / ext4\n"})
	dir := tree(t, map[string]string{"etc/hosts": ""})
	require.NoError(t, os.Symlink(filepath.Join(outside, "fstab"), filepath.Join(dir, "etc/fstab")))
	all, err := Check(dir, "")
	require.NoError(t, err)
	require.Contains(t, all[0].What, "no kernel was found")
	require.Empty(t, system{mustRoot(t, dir)}.text("etc/fstab"))
	_, err = Check(filepath.Join(dir, "none"), "")
	require.Error(t, err)
}

func mustRoot(t *testing.T, dir string) *os.Root {
	t.Helper()
	r, err := os.OpenRoot(dir)
	require.NoError(t, err)
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func TestNewestKernel(t *testing.T) {
	dir := tree(t, map[string]string{"usr/lib/modules/5.10.0/x": "", "usr/lib/modules/6.1.0/modules.builtin": "hv_vmbus.ko\nhv_storvsc.ko\nhv_netvsc.ko\n"})
	all, err := Check(dir, "")
	require.NoError(t, err)
	require.Contains(t, all[0].What, "kernel 6.1.0 has them built in")
}

func TestThisSystem(t *testing.T) {
	all, err := Check("/", "")
	require.NoError(t, err)
	for _, f := range all {
		require.NotEmpty(t, f.What, f.Check)
	}
}
