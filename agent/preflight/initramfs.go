package preflight

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"

	"drover/agent/controlapi"
)

// Bounds of an initramfs.
const (
	maxPacked    = 512 << 20
	maxUnpacked  = 2 << 30
	maxMembers   = 200_000
	maxName      = 4 << 10
	zstdMemory   = 128 << 20 // of its window; dracut and initramfs-tools take far less
	cpioHeader   = 110
	cpioMagic    = "070701"
	cpioMagicCRC = "070702"
	trailer      = "TRAILER!!!"
)

// hyperV are the drivers without which a guest sees no disk, or no network, in Azure.
var hyperV = []string{"hv_vmbus", "hv_storvsc", "hv_netvsc"}

// errPacking is an initramfs in a format that is not read here.
var errPacking = errors.New("compressed in a way that is not read here")

// drivers looks for the drivers of the target's disks and network in the initramfs of
// the kernel, or in the kernel itself.
func (s system) drivers(kernel string) controlapi.Finding {
	const check = "hyper-v-drivers"
	const how = "Debian and Ubuntu: add hv_vmbus hv_storvsc hv_netvsc to /etc/initramfs-tools/modules and run update-initramfs -u; " +
		"RHEL and SUSE: dracut -f --add-drivers \"hv_vmbus hv_storvsc hv_netvsc\""
	if kernel == "" {
		return warn(check, how, "no kernel was found, so it is not known whether it has the drivers of Hyper-V")
	}
	missing := s.notBuiltIn(kernel)
	if len(missing) == 0 {
		return ok(check, "kernel %s has them built in", kernel)
	}
	image := s.initramfs(kernel)
	if image == "" {
		return bad(check, how, "kernel %s has no initramfs under /boot, and %s are not built in", kernel, strings.Join(missing, ", "))
	}
	have, err := s.modules(image)
	if err != nil {
		return warn(check, "look yourself: `lsinitramfs /"+image+"` or `lsinitrd /"+image+"` lists hv_storvsc and hv_netvsc. "+how,
			"/%s cannot be read: %v", image, err)
	}
	missing = slices.DeleteFunc(missing, func(m string) bool { return have[m] })
	// The network may come later, from the root file system.
	disk := slices.DeleteFunc(slices.Clone(missing), func(m string) bool { return m == "hv_netvsc" })
	if len(disk) == 0 {
		return ok(check, "/%s has the drivers of Hyper-V's disks", image)
	}
	return bad(check, how, "/%s has no %s: the guest would not find its disk", image, strings.Join(disk, ", "))
}

// notBuiltIn are the drivers that the kernel does not have in itself.
func (s system) notBuiltIn(kernel string) []string {
	text := s.text("lib/modules/"+kernel+"/modules.builtin") + s.text("usr/lib/modules/"+kernel+"/modules.builtin")
	have := map[string]bool{}
	for line := range strings.Lines(text) {
		have[module(line)] = true
	}
	return slices.DeleteFunc(slices.Clone(hyperV), func(m string) bool { return have[m] })
}

// initramfs is where distributions put it.
func (s system) initramfs(kernel string) string {
	for _, name := range []string{"boot/initrd.img-" + kernel, "boot/initramfs-" + kernel + ".img", "boot/initrd-" + kernel, "usr/lib/modules/" + kernel + "/initrd"} {
		if info, exists := s.size(name); exists && info.Mode().IsRegular() {
			return name
		}
	}
	return ""
}

// module is a module's name from the path of its file: kernel/drivers/hv/hv_vmbus.ko.xz.
func module(file string) string {
	name, _, _ := strings.Cut(path.Base(strings.TrimSpace(file)), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// modules lists the modules of an initramfs: archives one after the other, each plain
// or compressed.
func (s system) modules(image string) (map[string]bool, error) {
	f, err := s.root.Open(image)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	in := bufio.NewReaderSize(io.LimitReader(f, maxPacked), 1<<16)
	have := map[string]bool{}
	for {
		magic, err := skipZeros(in)
		if errors.Is(err, io.EOF) {
			return have, nil
		}
		if err != nil {
			return nil, err
		}
		body, end, err := unpacked(in, magic)
		if err != nil {
			return nil, err
		}
		err = archive(body, have)
		end()
		if err != nil {
			return nil, err
		}
		if body != in {
			return have, nil // what is compressed comes last
		}
	}
}

// skipZeros gives what comes after the zeros between two archives.
func skipZeros(in *bufio.Reader) ([]byte, error) {
	for {
		b, err := in.Peek(6)
		if len(b) == 0 {
			return nil, err
		}
		if b[0] != 0 {
			return b, nil
		}
		if _, err := in.Discard(1); err != nil {
			return nil, err
		}
	}
}

// unpacked reads the archive that begins with magic.
func unpacked(in *bufio.Reader, magic []byte) (r *bufio.Reader, end func(), err error) {
	switch {
	case bytes.HasPrefix(magic, []byte("07070")):
		return in, func() {}, nil
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, nil, err
		}
		return bufio.NewReader(io.LimitReader(z, maxUnpacked)), func() { _ = z.Close() }, nil
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(zstdMemory), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, nil, err
		}
		return bufio.NewReader(io.LimitReader(z, maxUnpacked)), z.Close, nil
	}
	return nil, nil, fmt.Errorf("%w (it begins with % x)", errPacking, magic[:min(len(magic), 6)])
}

// archive reads one cpio archive ("newc") up to its trailer and notes the modules.
func archive(in *bufio.Reader, have map[string]bool) error {
	header := make([]byte, cpioHeader)
	for range maxMembers {
		if _, err := io.ReadFull(in, header); err != nil {
			return fmt.Errorf("read the archive: %w", err)
		}
		if m := string(header[:6]); m != cpioMagic && m != cpioMagicCRC {
			return fmt.Errorf("not an archive: %q", m)
		}
		size, err := strconv.ParseUint(string(header[54:62]), 16, 32)
		nameSize, err2 := strconv.ParseUint(string(header[94:102]), 16, 32)
		if err := errors.Join(err, err2); err != nil || nameSize == 0 || nameSize > maxName {
			return fmt.Errorf("a member with a name of %d bytes: %w", nameSize, err)
		}
		name := make([]byte, nameSize)
		if _, err := io.ReadFull(in, name); err != nil {
			return fmt.Errorf("read the archive: %w", err)
		}
		text := strings.TrimRight(string(name), "\x00")
		if text == trailer {
			return nil
		}
		if strings.Contains(path.Base(text), ".ko") {
			have[module(text)] = true
		}
		pad := padding(cpioHeader+int64(nameSize)) + int64(size) + padding(int64(size))
		if _, err := io.CopyN(io.Discard, in, pad); err != nil {
			return fmt.Errorf("read the archive: %w", err)
		}
	}
	return fmt.Errorf("more than %d members", maxMembers)
}

// padding to the next multiple of four.
func padding(n int64) int64 { return (4 - n%4) % 4 }
