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
	partition = 1 * mib         // where the second disk's partition begins
	bootLimit = 5 * time.Minute // a few seconds on a quiet machine
	qemu      = "qemu-system-x86_64"
)

// subjects are what the guest tries, each on a disk of its own: a source that says
// nothing, and those of the agent.
var subjects = []string{"control", "trace"}

// TestSourcesInAGuest boots the guest and takes its word, line by line.
func TestSourcesInAGuest(t *testing.T) {
	if _, err := exec.LookPath(qemu); err != nil {
		loop.Missing(t, err.Error())
	}
	k, err := findKernel(kernelDir)
	if err != nil {
		loop.Missing(t, err.Error())
	}
	dir := t.TempDir()
	initrd := filepath.Join(dir, "initrd")
	makeInitramfs(t, k, initrd)
	disks := []string{filepath.Join(dir, "busy")}
	for i := range subjects {
		disks = append(disks, filepath.Join(dir, fmt.Sprintf("disk%d", i)))
	}
	for i, name := range disks {
		require.NoError(t, os.WriteFile(name, nil, 0o600))
		require.NoError(t, os.Truncate(name, diskSize))
		if i > 0 {
			makePartition(t, name)
		}
	}
	lines := boot(t, k, initrd, disks...)
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
	for _, name := range subjects[1:] {
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
	files, err := k.files("virtio_pci", "virtio_blk")
	require.NoError(t, err)
	var archive bytes.Buffer
	require.NoError(t, writeCPIO(&archive, append(files, file{"init", execMode, data})))
	require.NoError(t, os.WriteFile(name, archive.Bytes(), 0o600))
}

// makePartition gives a disk one partition with ext4.
func makePartition(t *testing.T, disk string) {
	t.Helper()
	size := (diskSize - partition) / 1024
	out, err := exec.Command(labguest.Tool("mke2fs"), "-q", "-F", "-t", "ext4", "-E", "offset=1048576", disk, fmt.Sprintf("%dk", size)).CombinedOutput()
	require.NoError(t, err, "%s", out)
	entry := make([]byte, 16+2+48)
	entry[4] = 0x83 // Linux
	binary.LittleEndian.PutUint32(entry[8:], partition/loop.Sector)
	binary.LittleEndian.PutUint32(entry[12:], (diskSize-partition)/loop.Sector)
	entry[64], entry[65] = 0x55, 0xaa
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(entry, 446)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

// boot runs the guest to its end and gives the lines that its program wrote.
func boot(t *testing.T, k *kernel, initrd string, disks ...string) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	args := []string{"-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "512",
		"-kernel", k.image, "-initrd", initrd, "-append", "console=ttyS0 panic=-1 nokaslr mitigations=off loglevel=4"}
	for _, d := range disks {
		args = append(args, "-drive", "file="+d+",format=raw,if=virtio,cache=unsafe,discard=unmap")
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
