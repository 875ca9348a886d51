package file

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/vfs"
)

var update = flag.Bool("update", false, "write testdata/golden.txt anew")

// The bytes of an undo file's header, its entries and a pending mark, as FORMAT.md
// has them.
func TestGoldenBytes(t *testing.T) {
	const path = "testdata/golden.txt"
	dir := t.TempDir()
	m := machine{store: &Store{fs: vfs.OS}, id: ident.MachineID{1, 15: 0xff}, dir: dir}
	undo := filepath.Join(dir, "undo")
	require.NoError(t, createUndo(vfs.OS, undo, m.id, replica.Point{ID: 7, Generation: 2}))
	header, err := os.ReadFile(undo)
	require.NoError(t, err)
	require.NoError(t, m.savePending(pending{seq: 8, digest: ident.Digest{9, 31: 1}}))
	mark, err := os.ReadFile(m.path(pendingName))
	require.NoError(t, err)

	disk, data := ident.DiskID{2, 15: 0xee}, []byte(strings.Repeat("four", 128))
	var got strings.Builder
	var entries []byte
	add := func(name string, e entry, sums []uint64, data []byte) {
		b := append(e.marshal(nil, sums, data), data...)
		entries = append(entries, b...)
		fmt.Fprintf(&got, "%s: %x\n", name, b)
	}
	fmt.Fprintf(&got, "undo header: %x\n", header)
	add("data", entry{disk: disk, offset: 4096, length: 512}, []uint64{0x0102030405060708}, data)
	add("zeros", entry{disk: disk, offset: 8192, length: 1 << 20, flags: flagZero}, nil, nil)
	add("lost", entry{disk: disk, offset: 2 << 20, length: 8192, flags: flagLost}, []uint64{1, 2}, nil)
	fmt.Fprintf(&got, "pending: %x\n", mark)
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(got.String()), 0o600))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), got.String())

	require.NoError(t, os.WriteFile(undo, append(header, entries...), fileMode))
	u, err := openUndo(vfs.OS, undo, m.id, 7, undoHeaderSize)
	require.NoError(t, err)
	require.Equal(t, int64(len(entries)), u.bytes(), "all of it is read")
	require.NoError(t, u.close())
	p, err := m.loadPending()
	require.NoError(t, err)
	require.Equal(t, pending{seq: 8, digest: ident.Digest{9, 31: 1}}, p)
}
