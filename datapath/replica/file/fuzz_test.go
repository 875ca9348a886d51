package file

import (
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/replica/replicatest"
	"drover/datapath/vfs"
	"drover/tests/fuzz"
)

// seedStore is a machine with two points of which one is held, opened once.
func seedStore(f testing.TB) machine {
	s, err := Open(f.TempDir())
	require.NoError(f, err)
	spec := replicatest.Spec()
	for i := range spec.Disks {
		spec.Disks[i].Seed = uint64(i + 1)
	}
	w, err := s.OpenWriter(f.Context(), 1, spec)
	require.NoError(f, err)
	require.NoError(f, w.BeginGeneration(f.Context(), spec.Disks, false, nil))
	set := replicatest.After(w.State(), changeset.Base).Write(0, 0, replicatest.Pattern(1, 2*replicatest.Block)).Cut(replicatest.Complete())
	p, err := w.Apply(f.Context(), set)
	require.NoError(f, err)
	_, err = w.Apply(f.Context(), replicatest.After(w.State(), changeset.Delta).Write(0, 0, replicatest.Pattern(2, 4096)).Zero(1, 0, 8192).Cut(replicatest.Crash()))
	require.NoError(f, err)
	require.NoError(f, w.Close())
	r, err := s.OpenReader(f.Context(), spec.Machine)
	require.NoError(f, err)
	require.NoError(f, r.Hold(f.Context(), p.ID, replica.Hold{Owner: "reader", Expires: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)}))
	return s.machine(spec.Machine)
}

// parsedSize is how much larger parsed JSON is than its text, at most: an empty point
// is three bytes of a list, and lists grow in steps.
const parsedSize = 500

// Files that FuzzState writes, by number.
var stateFiles = []string{manifestName, holdsName, deleteName, pendingName}

// FuzzState puts anything in place of a machine's small files. What is accepted is
// written back the same, and a hold can be made on it.
func FuzzState(f *testing.F) {
	m := seedStore(f)
	for i, name := range stateFiles {
		b := []byte(`{"points":[1,2,2]}`)
		if name != deleteName {
			var err error
			b, err = os.ReadFile(m.path(name))
			require.NoError(f, err)
		}
		fuzz.Seed(f, name, uint8(i), b)
		fuzz.Seed(f, name+"-torn", uint8(i), b[:len(b)/2])
		fuzz.Seed(f, name+"-null", uint8(i), []byte("null"))
		fuzz.Seed(f, name+"-empty", uint8(i), []byte{})
	}
	fuzz.Seed(f, "version", uint8(0), []byte(`{"version":9,"state":{"spec":7}}`))
	good, err := os.ReadFile(m.path(manifestName))
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		name := stateFiles[int(which)%len(stateFiles)]
		kept, err := os.ReadFile(m.path(name))
		if err != nil {
			kept = nil
		}
		require.NoError(t, os.WriteFile(m.path(name), b, fileMode))
		defer func() {
			require.NoError(t, os.WriteFile(m.path(manifestName), good, fileMode))
			require.NoError(t, os.Remove(m.path(name)))
			if kept != nil {
				require.NoError(t, os.WriteFile(m.path(name), kept, fileMode))
			}
		}()
		r := &reader{m}
		fuzz.Alloc(t, 512<<10+parsedSize*len(b), func() {
			mf, err := m.load()
			if err == nil {
				_, err = m.state(mf)
			}
			if err == nil {
				_, err = m.loadPlan()
			}
			fuzz.Kind(t, err, replica.ErrCorrupt, replica.ErrVersion)
		})
		if mf, err := m.load(); err == nil && name == manifestName {
			requireStable(t, m, mf)
		}
		err = r.hold(t.Context(), 2, replica.Hold{Owner: "fuzz", Expires: time.Date(2101, 1, 1, 0, 0, 0, 0, time.UTC)})
		if name != holdsName {
			fuzz.Kind(t, err, replica.ErrCorrupt, replica.ErrVersion, replica.ErrNotFound)
		}
	})
}

// requireStable publishes what was read and reads it again.
func requireStable(t *testing.T, m machine, mf *manifest) {
	require.NoError(t, m.publish(mf))
	once, err := os.ReadFile(m.path(manifestName))
	require.NoError(t, err)
	again, err := m.load()
	require.NoError(t, err)
	require.NoError(t, m.publish(again))
	twice, err := os.ReadFile(m.path(manifestName))
	require.NoError(t, err)
	require.Equal(t, string(once), string(twice))
}

func TestEditedFilesAreRefused(t *testing.T) {
	m := seedStore(t)
	good, err := os.ReadFile(m.path(manifestName))
	require.NoError(t, err)
	for from, to := range map[string]string{
		undoName(replica.Point{ID: 1, Generation: 1}): "..", `"undoBytes":0`: `"undoBytes":-1`, m.id.String(): ident.NewMachineID("x", "y").String(),
		`"size":262144`: `"size":262145`, `"version":1`: `"version":0`, `{"id":2,`: `{"id":1,`,
	} {
		edited := strings.Replace(string(good), from, to, 1)
		require.NotEqual(t, string(good), edited, from)
		_, err := m.parseManifest([]byte(edited))
		if to == `"version":0` {
			require.ErrorIs(t, err, replica.ErrVersion)
			continue
		}
		require.ErrorIs(t, err, replica.ErrCorrupt, from)
	}
	_, err = m.parseManifest([]byte(`{"version":9,"state":{"spec":7}}`))
	require.ErrorIs(t, err, replica.ErrVersion, "whatever else is in it")

	require.NoError(t, os.WriteFile(m.path(holdsName), []byte("null"), fileMode))
	hold := replica.Hold{Owner: "o", Expires: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)}
	require.ErrorIs(t, (&reader{m}).hold(t.Context(), 1, hold), replica.ErrCorrupt)
	require.NoError(t, os.WriteFile(m.path(deleteName), []byte("null"), fileMode))
	_, err = m.loadPlan()
	require.ErrorIs(t, err, replica.ErrCorrupt)
	require.NoError(t, os.WriteFile(m.path(pendingName), make([]byte, pendingSize+1), fileMode))
	_, err = m.loadPending()
	require.ErrorIs(t, err, replica.ErrCorrupt)
}

// FuzzUndo opens an undo file with a hostile entry whose checksums are right, and
// then anything.
func FuzzUndo(f *testing.F) {
	id, point := ident.NewMachineID("vc", "vm"), replica.Point{ID: 7, Generation: 2}
	disk := ident.NewDiskID(id, "a")
	dir := f.TempDir()
	path := filepath.Join(dir, "seed.undo")
	require.NoError(f, createUndo(vfs.OS, path, id, point))
	header, err := os.ReadFile(path)
	require.NoError(f, err)
	data := replicatest.Pattern(1, 8192)
	sums := checksum.SumAll(nil, 1, 0, data)
	body := append(appendSums(nil, sums), data...)
	second := entry{disk: disk, offset: 1 << 20, length: 4096, flags: flagZero}.marshal(nil, nil, nil)
	fuzz.Seed(f, "data", uint32(0), int64(0), int64(8192), body, second, false)
	fuzz.Seed(f, "torn", uint32(0), int64(0), int64(8192), body[:5000], []byte{}, true)
	fuzz.Seed(f, "zeros", uint32(flagZero), int64(4096), int64(1<<30), []byte{}, second[:20], true)
	fuzz.Seed(f, "lost", uint32(flagLost), int64(4096), int64(8192), body[:16], second, true)
	fuzz.Seed(f, "flags", uint32(flagLost|flagZero), int64(4096), int64(8192), body[:16], second, true)
	fuzz.Seed(f, "end", uint32(flagZero), int64(math.MaxInt64)&^4095, int64(1<<20), []byte{}, second, true)
	fuzz.Seed(f, "negative", uint32(0), int64(-4096), int64(-1), body, second, false)
	f.Fuzz(func(t *testing.T, flags uint32, offset, length int64, body, tail []byte, published bool) {
		e := entry{disk: disk, offset: offset, length: length, flags: flags}
		file := append(append([]byte{}, header...), entryBytes(e, body)...)
		file = append(file, tail...)
		path := filepath.Join(t.TempDir(), "f.undo")
		require.NoError(t, os.WriteFile(path, file, fileMode))
		verify := int64(undoHeaderSize)
		if published {
			verify = int64(len(file))
		}
		blocks := int64(0) // what the entries claim
		end, err := scanUndo(bytesAt(file), undoHeaderSize, int64(len(file)), verify, func(e entry) error {
			require.True(t, e.length > 0 && e.offset >= 0 && e.end() <= changeset.MaxDiskSize && e.next() <= int64(len(file)))
			blocks += checksum.Blocks(e.length)
			return nil
		})
		require.NoError(t, err)
		// A bit for each block, in pieces, and the buffers.
		limit := 4*ioBytes + int(blocks/4) + 2*(1+len(file)/entryHeaderSize)*chunkWords*8
		fuzz.Alloc(t, limit, func() {
			u, err := openUndo(vfs.OS, path, id, point.ID, verify)
			fuzz.Kind(t, err, replica.ErrCorrupt)
			if err == nil {
				require.Equal(t, end, u.end)
				require.NoError(t, u.close())
			}
		})
	})
}

// entryBytes is an entry with a body that need not fit it, under right checksums.
func entryBytes(e entry, body []byte) []byte {
	n := 0
	if e.flags&flagZero == 0 && e.length > 0 && e.length <= maxEntryBytes {
		n = int(min(checksum.Blocks(e.length), int64(len(body)/sumSize)))
	}
	sums := make([]uint64, n)
	for i := range sums {
		sums[i] = binary.LittleEndian.Uint64(body[i*sumSize:])
	}
	data := body[n*sumSize:]
	return append(e.marshal(nil, sums, data), data...)
}

// bytesAt reads from memory.
type bytesAt []byte

func (b bytesAt) ReadAt(p []byte, off int64) (int, error) {
	n := copy(p, b[off:])
	if n < len(p) {
		return n, os.ErrInvalid // past what scanUndo was told
	}
	return n, nil
}
