package guest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	labguest "drover/tests/lab/guest"
	"drover/tests/loop"
)

const (
	mib       = 1 << 20
	diskSize  = 64 * mib
	xfsSize   = 64 * mib
	partition = 1 * mib         // where the second disk's partition begins
	bootLimit = 5 * time.Minute // a few seconds on a quiet machine
	qemu      = "qemu-system-x86_64"
)

// subjects are what the guest tries, each on a disk of its own: a source that says
// nothing, and those of the agent.
var subjects = []string{"control", "trace", "ebpf"}

// onNVMe are those that are tried with discards on an NVMe disk.
var onNVMe = []string{"trace-nvme", "ebpf-nvme"}

// TestSourcesInAGuest boots the guest and takes its word, line by line.
func TestSourcesInAGuest(t *testing.T) {
	for _, tool := range []string{qemu, labguest.Tool("mke2fs"), labguest.Tool("mkfs.xfs")} {
		if _, err := exec.LookPath(tool); err != nil {
			loop.Missing(t, err.Error())
		}
	}
	k, err := findKernel(kernelDir)
	if err != nil {
		loop.Missing(t, err.Error())
	}
	dir := t.TempDir()
	initrd := filepath.Join(dir, "initrd")
	makeInitramfs(t, k, initrd)
	disks := []string{filepath.Join(dir, "busy")}
	sparse(t, disks[0], diskSize)
	for i := range subjects {
		name := filepath.Join(dir, fmt.Sprintf("disk%d", i))
		sparse(t, name, diskSize)
		run(t, "mke2fs", "-q", "-F", "-t", "ext4", "-E", "offset=1048576", name, fmt.Sprintf("%dk", (diskSize-partition)/1024))
		writeTable(t, name, diskSize)
		disks = append(disks, name)
	}
	var nvmes []string
	for i := range onNVMe {
		name := filepath.Join(dir, fmt.Sprintf("nvme%d", i))
		makeXFS(t, name)
		nvmes = append(nvmes, name)
	}
	lines := boot(t, k, initrd, disks, nvmes)
	t.Log("\n" + strings.Join(lines, "\n"))
	said := map[string]string{}
	for _, line := range lines {
		word, rest, _ := strings.Cut(line, " ")
		what, text, _ := strings.Cut(rest, ": ")
		require.NotContains(t, said, what)
		said[what] = word + " " + text
	}
	require.Regexp(t, `^FAIL .* blocks changed and were not named`, said["control"], "a source that says nothing is found out")
	delete(said, "control")
	require.Contains(t, said, "boot")
	for _, name := range append(subjects[1:], onNVMe...) {
		require.Contains(t, said, name)
	}
	for what, text := range said {
		require.Regexp(t, "^PASS ", text, what)
	}
}

// makeInitramfs puts the program and the modules into an archive.
func makeInitramfs(t *testing.T, k *kernel, name string) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "init")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	data, err := os.ReadFile(program)
	require.NoError(t, err)
	files, err := k.files("virtio_pci", "virtio_blk", "xfs")
	require.NoError(t, err)
	var archive bytes.Buffer
	require.NoError(t, writeCPIO(&archive, append(files, file{"init", execMode, data})))
	require.NoError(t, os.WriteFile(name, archive.Bytes(), 0o600))
}

func sparse(t *testing.T, name string, size int64) {
	t.Helper()
	require.NoError(t, os.WriteFile(name, nil, 0o600))
	require.NoError(t, os.Truncate(name, size))
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), labguest.Tool(name), args...).CombinedOutput()
	require.NoError(t, err, "%s %v: %s", name, args, out)
}

// writeTable gives a disk one partition.
func writeTable(t *testing.T, disk string, size int64) {
	t.Helper()
	table := make([]byte, loop.Sector)
	entry := table[446:]
	entry[4] = 0x83 // Linux
	binary.LittleEndian.PutUint32(entry[8:], partition/loop.Sector)
	binary.LittleEndian.PutUint32(entry[12:], uint32((size-partition)/loop.Sector))
	table[510], table[511] = 0x55, 0xaa
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(table, 0)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

// makeXFS makes a disk with XFS on its only partition.
func makeXFS(t *testing.T, disk string) {
	t.Helper()
	part := disk + ".part"
	sparse(t, part, xfsSize)
	cmd := exec.CommandContext(t.Context(), labguest.Tool("mkfs.xfs"), "-q", part)
	cmd.Env = append(os.Environ(), "TEST_DIR=t", "TEST_DEV=t", "QA_CHECK_FS=t") // how XFS's own tests ask for a small one
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	sparse(t, disk, partition+xfsSize)
	run(t, "dd", "if="+part, "of="+disk, "bs=1M", "seek=1", "conv=sparse,notrunc", "status=none")
	writeTable(t, disk, partition+xfsSize)
}

// boot runs the guest to its end and gives the lines that its program wrote.
func boot(t *testing.T, k *kernel, initrd string, disks, nvmes []string) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	args := []string{"-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "512",
		"-kernel", k.image, "-initrd", initrd, "-append", "console=ttyS0 panic=-1 nokaslr mitigations=off loglevel=4"}
	for _, d := range disks {
		args = append(args, "-drive", "file="+d+",format=raw,if=virtio,cache=unsafe,discard=unmap")
	}
	for i, d := range nvmes {
		args = append(args, "-drive", fmt.Sprintf("file=%s,format=raw,if=none,id=n%d,cache=unsafe,discard=unmap", d, i), "-device", fmt.Sprintf("nvme,drive=n%d,serial=%d", i, i))
	}
	cmd := exec.CommandContext(ctx, qemu, args...)
	out, err := cmd.CombinedOutput()
	require.NoError(t, ctx.Err(), "the guest has not come to its end:\n%s", out)
	require.NoError(t, err, "%s", out)
	var lines []string
	for scan := bufio.NewScanner(bytes.NewReader(out)); scan.Scan(); {
		if _, line, ok := strings.Cut(scan.Text(), "drover: "); ok {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	require.NotEmpty(t, lines, "the guest said nothing of ours:\n%s", out)
	return lines
}
