package crashfs

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/durable"
	"drover/datapath/vfs"
)

// crashSeeds are how many ends of a power cut a test looks at.
const crashSeeds = 200

func create(t *testing.T, f *FS, path string) vfs.File {
	t.Helper()
	h, err := f.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	require.NoError(t, err)
	return h
}

// put writes a file and syncs it, but not its name.
func put(t *testing.T, f *FS, path, content string) {
	t.Helper()
	h := create(t, f, path)
	_, err := h.Write([]byte(content))
	require.NoError(t, errors.Join(err, h.Sync(), h.Close()))
}

// get gives the content, and "-" when there is no such file.
func get(t *testing.T, f *FS, path string) string {
	t.Helper()
	b, err := vfs.ReadFile(f, path, 1<<20)
	if errors.Is(err, fs.ErrNotExist) {
		return "-"
	}
	require.NoError(t, err)
	return string(b)
}

// ends gives what may be found after a power cut, each with how often.
func ends(f *FS, look func(*FS) string) map[string]int {
	out := map[string]int{}
	for seed := range uint64(crashSeeds) {
		out[look(f.Crash(seed))]++
	}
	return out
}

func keys(m map[string]int) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func TestNameIsDurableWithItsDirectory(t *testing.T) {
	f := New()
	require.NoError(t, f.MkdirAll("/a/b", 0o700))
	put(t, f, "/a/b/f", "x")
	look := func(f *FS) string { return get(t, f, "/a/b/f") }
	require.Equal(t, []string{"-", "x"}, keys(ends(f, look)))
	for _, dir := range []string{"/a/b", "/", "/a"} {
		require.Equal(t, []string{"-", "x"}, keys(ends(f, look)), dir)
		require.NoError(t, f.SyncDir(dir))
	}
	require.Equal(t, []string{"x"}, keys(ends(f, look)))
	require.NoError(t, f.Remove("/a/b/f"))
	require.Equal(t, []string{"-", "x"}, keys(ends(f, look)))
	require.NoError(t, f.SyncDir("/a/b"))
	require.Equal(t, []string{"-"}, keys(ends(f, look)))
}

func TestRenameIsWhole(t *testing.T) {
	f := New()
	put(t, f, "/f", "old")
	require.NoError(t, f.SyncDir("/"))
	put(t, f, "/f.tmp", "new")
	require.NoError(t, f.Rename("/f.tmp", "/f"))
	look := func(f *FS) string { return get(t, f, "/f") + " " + get(t, f, "/f.tmp") }
	require.Equal(t, []string{"new -", "old -", "old new"}, keys(ends(f, look)))
	require.Equal(t, "old -", look(f.Crash(AllLost)))
	require.Equal(t, "new -", look(f.Crash(AllKept)))
	require.NoError(t, f.SyncDir("/"))
	require.Equal(t, []string{"new -"}, keys(ends(f, look)))
}

func TestLinksShareTheirRoom(t *testing.T) {
	f := New()
	put(t, f, "/a", "x")
	require.NoError(t, f.SyncDir("/"))
	require.NoError(t, f.Link("/a", "/b"))
	require.ErrorIs(t, f.Link("/a", "/b"), fs.ErrExist)
	require.NoError(t, f.Remove("/a"))
	require.Equal(t, int64(pageSize), f.Used())
	require.Equal(t, []string{"--", "-x", "x-", "xx"}, keys(ends(f, func(f *FS) string { return get(t, f, "/a") + get(t, f, "/b") })))
	require.NoError(t, f.Crash(AllKept).Remove("/b"))
	require.NoError(t, f.Remove("/b"))
	require.Zero(t, f.Used())
}

func TestNamesAreIndependent(t *testing.T) {
	f := New()
	put(t, f, "/a", "1")
	put(t, f, "/b", "2")
	look := func(f *FS) string { return get(t, f, "/a") + get(t, f, "/b") }
	require.Equal(t, []string{"--", "-2", "1-", "12"}, keys(ends(f, look)))
	require.NoError(t, f.MkdirAll("/d", 0o700))
	put(t, f, "/d/x", "3")
	require.NoError(t, f.SyncDir("/"))
	require.NoError(t, f.SyncDir("/d"))
	require.NoError(t, f.RemoveAll("/d"))
	_, err := f.Stat("/d")
	require.ErrorIs(t, err, fs.ErrNotExist)
	for seed := range uint64(crashSeeds) {
		c := f.Crash(seed)
		if _, err := c.Stat("/d"); err != nil {
			require.Equal(t, "-", get(t, c, "/d/x"), "a directory never goes before what is in it")
		}
	}
}

func TestDataIsDurableWithItsSync(t *testing.T) {
	f := New()
	h := create(t, f, "/f")
	require.NoError(t, f.SyncDir("/"))
	for version := range byte(3) {
		_, err := h.WriteAt(bytes.Repeat([]byte{'a' + version}, 2*pageSize), 0)
		require.NoError(t, err)
		if version == 0 {
			require.NoError(t, h.Sync())
		}
	}
	seen, tornPages := map[string]bool{}, 0
	for seed := range uint64(crashSeeds) {
		b := get(t, f.Crash(seed), "/f")
		require.Len(t, b, 2*pageSize)
		for _, page := range []string{b[:pageSize], b[pageSize:]} {
			for at := 0; at < pageSize; at += sectorSize {
				require.Equal(t, string(bytes.Repeat([]byte{page[at]}, sectorSize)), page[at:at+sectorSize], "a sector is whole")
				if page[at] != page[0] {
					tornPages++
				}
			}
		}
		seen[string(b[0])+string(b[pageSize])] = true
		require.Equal(t, b, get(t, f.Crash(seed), "/f"), "the same seed finds the same")
	}
	require.Positive(t, tornPages)
	for _, pair := range []string{"aa", "ab", "ac", "ba", "ca", "cb", "cc"} {
		require.True(t, seen[pair], "pages %s", pair)
	}
	require.NoError(t, h.Sync())
	require.Len(t, ends(f, func(f *FS) string { return get(t, f, "/f") }), 1)
	require.NoError(t, h.Truncate(100))
	_, err := h.WriteAt([]byte("z"), 10_000)
	require.NoError(t, err)
	lengths := ends(f, func(f *FS) string { return fmt.Sprint(len(get(t, f, "/f"))) })
	require.Contains(t, lengths, "100")
	require.Contains(t, lengths, "8192")
	require.Contains(t, lengths, "10001")
	require.NoError(t, h.Close())
}

func TestPowerCut(t *testing.T) {
	f := New()
	f.CutAfter(2)
	h := create(t, f, "/f")
	_, err := h.Write([]byte("x"))
	require.NoError(t, err)
	require.ErrorIs(t, h.Sync(), ErrPower)
	_, err = h.ReadAt(make([]byte, 1), 0)
	require.ErrorIs(t, err, ErrPower)
	_, err = f.Stat("/f")
	require.ErrorIs(t, err, ErrPower)
	_, err = f.ReadDir("/")
	require.ErrorIs(t, err, ErrPower)
	require.NoError(t, h.Close())
	require.Equal(t, 2, f.Calls())
	after := f.Crash(AllKept)
	require.Equal(t, "x", get(t, after, "/f"))
	f.CutAfter(-1)
	require.Equal(t, "x", get(t, f, "/f"))
}

func TestFullDisk(t *testing.T) {
	f := New()
	f.SetCapacity(3 * pageSize)
	put(t, f, "/a", "x")
	h := create(t, f, "/b")
	n, err := h.WriteAt(make([]byte, 4*pageSize), 0)
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.Equal(t, 2*pageSize, n)
	_, err = h.WriteAt([]byte("in place"), 0)
	require.NoError(t, err)
	require.NoError(t, h.PunchHole(0, pageSize))
	require.Equal(t, int64(2*pageSize), f.Used())
	put(t, f, "/c", "y")
	require.NoError(t, h.Truncate(0))
	require.NoError(t, f.Remove("/a"))
	require.Equal(t, int64(pageSize), f.Used())
	require.Equal(t, int64(pageSize), f.Crash(AllKept).Used())
	require.NoError(t, h.Close())
}

// A sync that fails has lost what was written, and the next one does not say so.
func TestFailedSync(t *testing.T) {
	f := New()
	h := create(t, f, "/f")
	require.NoError(t, f.SyncDir("/"))
	_, err := h.WriteAt(bytes.Repeat([]byte("a"), 8*pageSize), 0)
	require.NoError(t, errors.Join(err, h.Sync()))
	_, err = h.WriteAt(bytes.Repeat([]byte("b"), 8*pageSize), 0)
	require.NoError(t, err)
	f.Inject(Rule{Op: Sync, Name: "f", Err: syscall.EIO, Times: 1})
	require.ErrorIs(t, h.Sync(), syscall.EIO)
	require.NoError(t, h.Sync())
	b := get(t, f, "/f")
	require.Contains(t, b, "a")
	require.Contains(t, b, "b")
	require.NotContains(t, get(t, f.Crash(AllKept), "/f"), "b")
	_, err = h.WriteAt(bytes.Repeat([]byte("b"), 8*pageSize), 0)
	require.NoError(t, errors.Join(err, h.Sync(), h.Close()))
	require.NotContains(t, get(t, f.Crash(AllLost), "/f"), "a")
}

func TestRules(t *testing.T) {
	f := New()
	put(t, f, "/f", "drover")
	f.Inject(Rule{Op: Read, Name: "f", Err: syscall.EIO, Skip: 1, Times: 1})
	h, err := f.OpenFile("/f", os.O_RDWR, 0)
	require.NoError(t, err)
	b := make([]byte, 6)
	_, err = h.ReadAt(b, 0)
	require.ErrorIs(t, err, syscall.EIO)
	f.Inject(Rule{Op: Read, Name: "[f]", Flip: true, Times: 1})
	_, err = h.ReadAt(b, 0)
	require.NoError(t, err)
	require.Equal(t, "drower", string(bytes.ReplaceAll(b, []byte{'v' ^ 1}, []byte("w"))))
	_, err = h.ReadAt(b, 0)
	require.NoError(t, err)
	require.Equal(t, "drover", string(b))
	f.Inject(Rule{Op: Write, Err: syscall.EIO, Short: true, Times: 1})
	n, err := h.WriteAt([]byte("DROVER"), 0)
	require.ErrorIs(t, err, syscall.EIO)
	require.Equal(t, 3, n)
	require.Equal(t, "DROver", get(t, f, "/f"))
	f.SetReadOnly()
	for _, err := range []error{f.Remove("/f"), f.Rename("/f", "/g"), f.MkdirAll("/d", 0), f.SyncDir("/"), h.Truncate(0), h.Sync()} {
		require.ErrorIs(t, err, syscall.EROFS)
	}
	f.Mend()
	require.NoError(t, h.Truncate(2))
	require.Equal(t, "DR", get(t, f, "/f"))
	require.NoError(t, h.Close())
	require.ErrorIs(t, h.Sync(), fs.ErrClosed)
}

func TestReplacedFileIsOldOrNew(t *testing.T) {
	for calls := 0; ; calls++ {
		f := New()
		require.NoError(t, durable.WriteFileOn(f, "/f", []byte("old"), 0o600))
		f.CutAfter(calls)
		err := durable.WriteFileOn(f, "/f", []byte("new"), 0o600)
		found := keys(ends(f, func(f *FS) string { return get(t, f, "/f") }))
		if err == nil {
			require.Equal(t, []string{"new"}, found)
			return
		}
		require.Subset(t, []string{"new", "old"}, found, "after %d calls", calls)
	}
}

// TestLikeTheSystem does the same random things to this file system and to the
// system's, and compares.
func TestLikeTheSystem(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 1))
		ours, dir := New(), t.TempDir()
		require.NoError(t, ours.MkdirAll(dir, 0o700))
		both := []vfs.FS{ours, vfs.OS}
		path := func() string { return filepath.Join(dir, string('a'+rune(r.IntN(4)))) }
		for step := range 60 {
			what, p, q := r.IntN(9), path(), path()
			flags := []int{os.O_RDWR, os.O_CREATE | os.O_RDWR, os.O_CREATE | os.O_EXCL | os.O_RDWR, os.O_CREATE | os.O_TRUNC | os.O_RDWR}[r.IntN(4)]
			offset, length := r.Int64N(5*pageSize), 1+r.Int64N(3*pageSize)
			var told []string
			for _, f := range both {
				told = append(told, do(t, f, what, p, q, flags, offset, length))
			}
			require.Equal(t, told[1], told[0], "seed %d, step %d, action %d", seed, step, what)
		}
		a, err := ours.ReadDir(dir)
		require.NoError(t, err)
		b, err := vfs.OS.ReadDir(dir)
		require.NoError(t, err)
		require.Equal(t, b, a)
	}
}

// do does one thing to a file and tells what came of it.
func do(t *testing.T, f vfs.FS, what int, path, other string, flags int, offset, length int64) string {
	t.Helper()
	switch what {
	case 0:
		return told(f.Rename(path, other))
	case 1:
		return told(f.Remove(path))
	case 2:
		return told(f.Link(path, other))
	case 3:
		return told(f.MkdirAll(filepath.Join(filepath.Dir(path), "d", filepath.Base(path)), 0o700), f.SyncDir(filepath.Dir(path)))
	}
	h, err := f.OpenFile(path, flags, 0o600)
	if err != nil {
		return told(err)
	}
	defer func() { require.NoError(t, h.Close()) }()
	switch what {
	case 4:
		err = h.Truncate(offset)
	case 5:
		if err = h.PunchHole(offset, length); errors.Is(err, errors.ErrUnsupported) {
			t.Skip("this file system punches no holes")
		}
	default:
		_, err = h.WriteAt(bytes.Repeat([]byte{byte(length)}, int(length)), offset)
	}
	info, statErr := h.Stat()
	content, readErr := io.ReadAll(io.NewSectionReader(h, 0, info.Size+1))
	sparse := make([]byte, len(content)) // by what is said to be data
	for at := int64(0); ; {
		from, to, dataErr := h.NextData(at)
		if dataErr != nil {
			require.ErrorIs(t, dataErr, io.EOF)
			break
		}
		at = to
		copy(sparse[from:to], content[from:])
	}
	require.True(t, bytes.Equal(content, sparse), "holes are zeros")
	return told(err, h.Sync(), statErr, readErr) + fmt.Sprintf("%d %x", info.Size, sha256.Sum256(content))
}

func told(errs ...error) string {
	var out string
	for _, err := range errs {
		var number syscall.Errno
		errors.As(err, &number)
		out += number.Error() + ";"
	}
	return out
}
