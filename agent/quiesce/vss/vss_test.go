package vss

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/agent/disk"
)

const (
	volumeC = `\\?\Volume{351b4712-0000-0000-0000-602200000000}\`
	volumeD = `\\?\Volume{711fc68a-0000-0000-0000-100000000000}\`
	setID   = "{97a10120-9375-41c3-98f8-b0fc8f94582e}"
	other   = "{0b0b0b0b-9375-41c3-98f8-b0fc8f94582e}" // of another program
	device  = `\\?\GLOBALROOT\Device\HarddiskVolumeShadowCopy`
)

// The double is this program with these arguments: a folder, then what is played back.
const double = "diskshadow-double"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == double {
		if err := play(os.Args[2], os.Args[3], os.Args[len(os.Args)-1]); err != nil {
			fmt.Println(err)
			syscall.Exit(1) // the race detector waits a second at os.Exit
		}
		syscall.Exit(0)
	}
	os.Exit(m.Run())
}

// play is diskshadow: it carries out a script, prints what was recorded, and keeps in its
// folder what shadow copies there are.
func play(dir, recorded, script string) error {
	text, err := os.ReadFile(script)
	if err != nil {
		return err
	}
	note(dir, "calls", string(text))
	has := func(name string) bool { _, err := os.Stat(filepath.Join(dir, name)); return err == nil }
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\r\n")
		id, isDelete := strings.CutPrefix(line, "delete shadows set ")
		switch {
		case line == "create":
			out, err := os.ReadFile(filepath.Join("testdata", recorded))
			if err != nil {
				return err
			}
			if len(sets(out)) > 0 {
				note(dir, "there", setID+"\n")
			}
			if _, err := os.Stdout.Write(out); err != nil {
				return err
			}
			if has("hang") {
				time.Sleep(time.Minute)
			}
			if has("fail") {
				syscall.Exit(3)
			}
		case isDelete && !has("stuck"):
			there, err := os.ReadFile(filepath.Join(dir, "there"))
			if err != nil || !strings.Contains(string(there), id) {
				return fmt.Errorf("no shadow copy set %s", id)
			}
			left := strings.ReplaceAll(string(there), id+"\n", "")
			if err := os.WriteFile(filepath.Join(dir, "there"), []byte(left), 0o600); err != nil {
				return err
			}
		case line == "list shadows all":
			there, _ := os.ReadFile(filepath.Join(dir, "there"))
			if len(there) == 0 && has("empty list fails") {
				return fmt.Errorf("there are none")
			}
			fmt.Printf("%s", there)
		}
	}
	return nil
}

func note(dir, name, text string) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = f.WriteString(text)
	}
	if err != nil || f.Close() != nil {
		panic("the double cannot note what it does")
	}
}

// rig is a provider with a double that plays back a file.
type rig struct {
	*Provider
	t   *testing.T
	dir string // the double's
}

func newRig(t *testing.T, recorded string, marks ...string) *rig {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	r := &rig{&Provider{Dir: filepath.Join(t.TempDir(), "vss")}, t, t.TempDir()}
	for _, m := range marks {
		note(r.dir, m, "")
	}
	note(r.dir, "there", other+"\n")
	r.Program = []string{self, double, r.dir, recorded}
	return r
}

func (r *rig) text(name string) string {
	b, err := os.ReadFile(filepath.Join(r.dir, name))
	require.NoError(r.t, err)
	return string(b)
}

// clean checks that no shadow copy of ours and no note is left, and another's is.
func (r *rig) clean() {
	r.t.Helper()
	require.Equal(r.t, other+"\n", r.text("there"))
	require.Empty(r.t, r.notes())
}

func (r *rig) notes() []string {
	all, err := filepath.Glob(filepath.Join(r.Dir, notePrefix+"*"))
	require.NoError(r.t, err)
	return all
}

func (r *rig) create(writers bool) (*Set, error) {
	return r.Create(r.t.Context(), []string{volumeC, volumeD}, writers)
}

// TestCreateAndDelete: in whatever language and encoding.
func TestCreateAndDelete(t *testing.T) {
	for _, recorded := range []string{"made.txt", "made-german.txt", "made-utf16.txt"} {
		t.Run(recorded, func(t *testing.T) {
			r := newRig(t, recorded)
			s, err := r.create(true)
			require.NoError(t, err)
			require.Equal(t, setID, s.ID)
			require.Equal(t, map[string]string{volumeC: device + "12", volumeD: device + "13"}, s.Devices)
			require.True(t, s.Writers)
			require.Empty(t, s.Failed)
			require.Positive(t, s.Took)
			require.Len(t, r.notes(), 1)
			require.NoError(t, r.Delete(t.Context(), s))
			r.clean()
			require.Equal(t, "set context persistent\r\nadd volume "+volumeC+" alias drover_0\r\nadd volume "+volumeD+" alias drover_1\r\ncreate\r\nlist writers status\r\n"+
				"delete shadows set "+setID+"\r\nlist shadows all\r\n", r.text("calls"))
		})
	}
}

func TestWithoutWriters(t *testing.T) {
	r := newRig(t, "no-writers.txt")
	s, err := r.create(false)
	require.NoError(t, err)
	require.False(t, s.Writers)
	require.Empty(t, s.Failed)
	require.True(t, strings.HasPrefix(r.text("calls"), "set context persistent nowriters\r\n"))
	require.NotContains(t, r.text("calls"), "list writers")
}

// TestWriterFails: the shadow copies are there, and are no application's word.
func TestWriterFails(t *testing.T) {
	r := newRig(t, "writer-failed.txt")
	s, err := r.create(true)
	require.NoError(t, err)
	require.Equal(t, []string{
		`WRITER "SqlServerWriter" - Status: 8 (VSS_WS_FAILED_AT_FREEZE)`,
		`WRITER "SqlServerWriter" - Writer Failure code: 0x800423f2 (VSS_E_WRITERERROR_TIMEOUT)`,
	}, s.Failed)
}

// TestWritersThatAreNotToldOf have not taken part, as far as anybody knows.
func TestWritersThatAreNotToldOf(t *testing.T) {
	s, err := newRig(t, "no-writers.txt").create(true)
	require.NoError(t, err)
	require.Equal(t, []string{"diskshadow did not tell the writers' states"}, s.Failed)
}

// TestNotMade: there is no set, the reason is told, and nothing stays.
func TestNotMade(t *testing.T) {
	for recorded, want := range map[string]string{
		"not-made.txt":    "insufficient storage",
		"unknown.txt":     "of a version to come",
		"one-missing.txt": "where the shadow copy of " + volumeD,
		"broken-off.txt":  "did not make them",
	} {
		t.Run(recorded, func(t *testing.T) {
			r := newRig(t, recorded)
			_, err := r.create(true)
			require.ErrorContains(t, err, want)
			r.clean()
		})
	}
}

// TestDiskshadowFails after it has made them: they are deleted.
func TestDiskshadowFails(t *testing.T) {
	r := newRig(t, "made.txt", "fail")
	_, err := r.create(true)
	require.ErrorContains(t, err, "exit status 3")
	r.clean()
}

func TestTimeout(t *testing.T) {
	r := newRig(t, "broken-off.txt", "hang")
	r.Timeout = 2 * time.Second
	_, err := r.create(true)
	require.ErrorContains(t, err, "diskshadow took longer than 2s")
	r.clean()
}

func TestNoDiskshadow(t *testing.T) {
	p := &Provider{Dir: t.TempDir()}
	_, err := p.Create(t.Context(), []string{volumeC}, true)
	require.ErrorContains(t, err, "Windows Server has it")
}

// TestVolumesThatAreNone: nothing of them comes into a script.
func TestVolumesThatAreNone(t *testing.T) {
	for _, v := range []string{"", `C:\`, volumeC + "\r\nexec evil.cmd", volumeC + " ", `\\?\Volume{351b4712}\`} {
		r := newRig(t, "made.txt")
		_, err := r.Create(t.Context(), []string{volumeD, v}, true)
		require.ErrorContains(t, err, "no name of a volume", "%q", v)
		require.NoFileExists(t, filepath.Join(r.dir, "calls"))
	}
	r := newRig(t, "made.txt")
	_, err := r.Create(t.Context(), make([]string, maxVolumes+1), true)
	require.ErrorContains(t, err, "want 1 to 64")
}

// TestLeftByACrash: the next process deletes them, and the next set is made after that.
func TestLeftByACrash(t *testing.T) {
	r := newRig(t, "made.txt", "empty list fails")
	_, err := r.create(true)
	require.NoError(t, err)
	next := &rig{&Provider{Dir: r.Dir, Program: r.Program}, t, r.dir}
	n, err := next.Recover(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, n)
	next.clean()

	_, err = next.create(true)
	require.NoError(t, err)
	s, err := next.create(true) // nobody has deleted the one before
	require.NoError(t, err)
	require.Equal(t, setID+"\n", strings.ReplaceAll(r.text("there"), other+"\n", ""))
	require.Len(t, next.notes(), 1)
	require.NoError(t, next.Delete(t.Context(), s))
	n, err = next.Recover(t.Context())
	require.NoError(t, err)
	require.Zero(t, n)
}

// TestDeletedBySomebodyElse is as good.
func TestDeletedBySomebodyElse(t *testing.T) {
	r := newRig(t, "made.txt")
	s, err := r.create(true)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(r.dir, "there"), []byte(other+"\n"), 0o600))
	require.NoError(t, r.Delete(t.Context(), s))
	r.clean()
}

// TestStuck: shadow copies that are still listed are not forgotten, and no more are made.
func TestStuck(t *testing.T) {
	r := newRig(t, "made.txt", "stuck")
	s, err := r.create(true)
	require.NoError(t, err)
	require.ErrorContains(t, r.Delete(t.Context(), s), "still there")
	_, err = r.create(true)
	require.ErrorContains(t, err, "still there")
	require.Equal(t, 1, strings.Count(r.text("there"), setID))
	require.NoError(t, os.Remove(filepath.Join(r.dir, "stuck")))
	_, err = r.Recover(t.Context())
	require.NoError(t, err)
	r.clean()
}

// TestAnEarlierDiskshadowIsAtWork: a note without an id is young, so that its writer may
// live; when it is old, nothing came of it.
func TestAnEarlierDiskshadowIsAtWork(t *testing.T) {
	r := newRig(t, "made.txt")
	require.NoError(t, os.MkdirAll(r.Dir, 0o700))
	path := filepath.Join(r.Dir, notePrefix+"1"+noteSuffix)
	require.NoError(t, os.WriteFile(path, []byte("-> create\r\n"), 0o600))
	_, err := r.create(true)
	require.ErrorIs(t, err, ErrUnfinished)
	require.FileExists(t, path)
	old := time.Now().Add(-2 * DefaultTimeout)
	require.NoError(t, os.Chtimes(path, old, old))
	_, err = r.create(true)
	require.NoError(t, err)
	require.NoFileExists(t, path)
}

func TestArrange(t *testing.T) {
	const d0, d1 = `\\.\PhysicalDrive0`, `\\.\PhysicalDrive1`
	on := func(e ...disk.Extent) []disk.Extent { return e }
	l := Arrange([]string{d0, d1}, []disk.Volume{
		{Name: volumeC, FileSystem: "NTFS", Mounts: []string{`C:\`}, Extents: on(disk.Extent{Disk: d0, Offset: 1 << 20, Length: 1 << 30})},
		{Name: volumeD, FileSystem: "refs", Extents: on(disk.Extent{Disk: d1, Offset: 4096, Length: 5})},
		{Name: "esp", FileSystem: "FAT32", Extents: on(disk.Extent{Disk: d0, Offset: 0, Length: 5})},
		{Name: "stick", FileSystem: "FAT32", Mounts: []string{`F:\`}, Extents: on(disk.Extent{Disk: d1, Offset: 0, Length: 5})},
		{Name: "elsewhere", FileSystem: "NTFS", Mounts: []string{`X:\`}, Extents: on(disk.Extent{Offset: 0, Length: 5})},
		{Name: "spanned", FileSystem: "NTFS", Mounts: []string{`S:\`}, Extents: on(disk.Extent{Disk: d0, Offset: 2 << 30, Length: 5}, disk.Extent{Offset: 0, Length: 5})},
		{Name: "empty"},
	})
	require.Equal(t, &Layout{
		Parts: []Part{{d0, 1 << 20, 1 << 30, volumeC}, {d1, 4096, 5, volumeD}},
		Loose: []string{`F:\, a file system without shadow copies (FAT32)`, `S:\, which lies on 2 parts of disks`},
	}, l)
	require.Equal(t, []string{volumeC, volumeD}, l.Volumes())
}
