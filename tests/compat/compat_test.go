package compat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/codec"
	"drover/datapath/compress"
	"drover/datapath/ident"
	"drover/datapath/wire"
)

var write = flag.Bool("write", false, "write the samples of the newest versions that are not there yet")

type keyring struct{}

func (keyring) Key(_ ident.MachineID, id string) (changeset.Key, error) {
	if id != "k1" {
		return changeset.Key{}, errors.New("no such key")
	}
	return changeset.Key{ID: "k1", Secret: [32]byte{1, 2, 3}}, nil
}

func header() changeset.Header {
	m := ident.NewMachineID("vc", "vm")
	return changeset.Header{
		Machine: m, Generation: 2, Epoch: 3, Seq: 7, Prev: ident.Digest{9}, Kind: changeset.Delta, KeyID: "k1",
		Disks: []changeset.Disk{{ID: ident.NewDiskID(m, "a"), Size: 1<<20 + 512, Seed: 1}, {ID: ident.NewDiskID(m, "b"), Size: 64 << 10, Seed: 2}},
	}
}

func cut() changeset.Cut {
	return changeset.Cut{SourceTime: time.Unix(1700000000, 5).UTC(), Consistency: ident.ApplicationConsistent, Freeze: time.Millisecond, Note: "n"}
}

// extents are what every sample of a change set says.
func extents() []changeset.Extent {
	text := bytes.Repeat([]byte("the quick brown fox jumps over the lazy dog\n"), 400)[:16<<10]
	noise := make([]byte, 8<<10)
	for i, x := 0, uint32(1); i < len(noise); i++ {
		x = x*1664525 + 1013904223
		noise[i] = byte(x >> 24)
	}
	make := func(disk int, at int64, data []byte) changeset.Extent {
		return changeset.Extent{Disk: disk, Offset: at, Length: int64(len(data)), Data: data, Sums: checksum.SumAll(nil, header().Disks[disk].Seed, at, data)}
	}
	return []changeset.Extent{
		make(0, 0, text), {Disk: 0, Offset: 64 << 10, Length: 128 << 10, Zero: true}, make(1, 4096, noise),
		make(0, 1<<20, text[:512]), make(0, 4096, noise[:4096]),
	}
}

func sample(version string) string { return filepath.Join("testdata", "changeset-v"+version+".cs") }

const wireVersion = int(wire.Version)

// newestChangeSet is the version that the present code writes.
func newestChangeSet(t *testing.T) int {
	t.Helper()
	return int(binary.LittleEndian.Uint32(newChangeSet(t)[4:]))
}

// newChangeSet writes the extents in chunks of one disk each.
func newChangeSet(t *testing.T) []byte {
	t.Helper()
	var out bytes.Buffer
	key, err := keyring{}.Key(ident.MachineID{}, "k1")
	require.NoError(t, err)
	w, err := changeset.NewWriter(&out, header(), key)
	require.NoError(t, err)
	all := extents()
	for i, part := range [][]changeset.Extent{all[:2], all[2:3], all[3:]} {
		c := &changeset.Chunk{Disk: part[0].Disk}
		var plain []byte
		for _, e := range part {
			plain = append(plain, e.Data...)
			e.Data = nil
			c.Extents = append(c.Extents, e)
		}
		c.Data, c.Codec = compress.Encode([]codec.Codec{codec.S2, codec.Zstd, codec.None}[i], nil, plain)
		require.NoError(t, w.Add(c))
	}
	_, err = w.Finish(cut())
	require.NoError(t, err)
	return out.Bytes()
}

func TestChangeSets(t *testing.T) {
	newest := newestChangeSet(t)
	if _, err := os.Stat(sample(strconv.Itoa(newest))); *write && err != nil {
		require.NoError(t, os.WriteFile(sample(strconv.Itoa(newest)), newChangeSet(t), 0o600))
	}
	var digest ident.Digest
	for v := range newest {
		version := strconv.Itoa(v + 1)
		file, err := os.ReadFile(sample(version))
		require.NoError(t, err, "the format's version was raised: add a sample with -write")
		r, err := changeset.Open(bytes.NewReader(file), int64(len(file)), keyring{})
		require.NoError(t, err, "version %s", version)
		for _, want := range extents() {
			got, err := r.Next()
			require.NoError(t, err)
			require.Equal(t, want, got, "version %s", version)
		}
		_, err = r.Next()
		require.ErrorIs(t, err, io.EOF)
		s := r.Summary()
		require.Equal(t, header(), s.Header)
		require.Equal(t, cut(), s.Cut)
		require.Equal(t, int64(5), s.Extents)
		if version == "1" {
			digest = s.Digest
		}
		require.Equal(t, digest, s.Digest, "the digest is the same in all versions")
	}
}

// A version that is not known is refused, not guessed.
func TestUnknownVersions(t *testing.T) {
	file, err := os.ReadFile(sample("2"))
	require.NoError(t, err)
	newest := newestChangeSet(t)
	for _, version := range []byte{0, byte(newest + 1), 255} {
		bad := bytes.Clone(file)
		bad[4] = version
		_, err := changeset.Open(bytes.NewReader(bad), int64(len(bad)), keyring{})
		require.ErrorIs(t, err, changeset.ErrVersion)
		require.ErrorContains(t, err, fmt.Sprintf("this program reads 1 to %d", newest))
	}
}
