package disk

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	uuidA = "6000C29a-1111-2222-3333-44445555666a"
	uuidB = "6000C29b-1111-2222-3333-44445555666b"
	uuidC = "6000C29c-1111-2222-3333-44445555666c"
	bare  = "11112222333344445555666"
)

// links makes a directory as udev has it.
func links(t *testing.T, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		require.NoError(t, os.Symlink("../../sda", filepath.Join(dir, name)))
	}
	return dir
}

func TestFindByLink(t *testing.T) {
	dir := links(t, "wwn-0x6000c29a"+bare+"a", "scsi-36000c29b"+bare+"b", "ata-VBOX_1", "wwn-0x5000c500a1b2c3d4",
		"wwn-0x6000c29c"+bare+"c-part1", "scsi-36000c29c"+bare+"c-part12", "scsi-06000c29c"+bare+"c")
	f := Finder{ByID: dir}
	for uuid, name := range map[string]string{
		uuidA:                     "wwn-0x6000c29a" + bare + "a",
		"6000c29a" + bare + "A":   "wwn-0x6000c29a" + bare + "a",
		uuidB:                     "scsi-36000c29b" + bare + "b",
		"6000-C29B" + bare + "-b": "scsi-36000c29b" + bare + "b",
	} {
		got, err := f.Find(uuid)
		require.NoError(t, err, uuid)
		require.Equal(t, filepath.Join(dir, name), got)
	}
	_, err := f.Find(uuidC)
	require.ErrorIs(t, err, ErrNotFound, "a partition is not the disk")
	all, err := f.List()
	require.NoError(t, err)
	require.ElementsMatch(t, []Found{
		{"6000c29a" + bare + "a", filepath.Join(dir, "wwn-0x6000c29a"+bare+"a")},
		{"6000c29b" + bare + "b", filepath.Join(dir, "scsi-36000c29b"+bare+"b")},
	}, all)
}

func TestPathsWin(t *testing.T) {
	dir := links(t, "wwn-0x6000c29a"+bare+"a", "scsi-36000c29a"+bare+"a", "scsi-36000c29b"+bare+"b")
	f := Finder{ByID: dir, Paths: map[string]string{uuidC: "/images/c.img", uuidA: "/images/a.img"}}
	got, err := f.Find("6000c29a" + bare + "a")
	require.NoError(t, err)
	require.Equal(t, "/images/a.img", got)
	all, err := f.List()
	require.NoError(t, err)
	require.Equal(t, []Found{{uuidA, "/images/a.img"}, {uuidC, "/images/c.img"},
		{"6000c29b" + bare + "b", filepath.Join(dir, "scsi-36000c29b"+bare+"b")}}, all)
}

// Both links of one disk are one disk.
func TestListNamesADiskOnce(t *testing.T) {
	all, err := Finder{ByID: links(t, "wwn-0x6000c29a"+bare+"a", "scsi-36000C29A"+bare+"A")}.List()
	require.NoError(t, err)
	require.Len(t, all, 1)
	require.Equal(t, "6000c29a"+bare+"a", all[0].BackingUUID)
}

func TestNotFoundSaysWhatToDo(t *testing.T) {
	for _, dir := range []string{links(t), filepath.Join(t.TempDir(), "none"), links(t, "ata-x")} {
		_, err := Finder{ByID: dir}.Find(uuidA)
		require.ErrorIs(t, err, ErrNotFound)
		for _, text := range []string{uuidA, dir, "disk.EnableUUID = TRUE", "`disks`"} {
			require.ErrorContains(t, err, text)
		}
		all, err := Finder{ByID: dir}.List()
		require.NoError(t, err)
		require.Empty(t, all)
	}
	require.Equal(t, ByID, Finder{}.dir())
}

// A directory that cannot be read is not an empty one.
func TestUnreadableLinks(t *testing.T) {
	file := filepath.Join(t.TempDir(), "by-id")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	f := Finder{ByID: file, Paths: map[string]string{uuidA: "/images/a.img"}}
	_, err := f.Find(uuidB)
	require.ErrorContains(t, err, "find disk "+uuidB)
	require.NotErrorIs(t, err, ErrNotFound)
	all, err := f.List()
	require.Error(t, err)
	require.Len(t, all, 1, "the configured ones are known all the same")
	got, err := f.Find(uuidA)
	require.NoError(t, err)
	require.Equal(t, "/images/a.img", got)
}
