package target_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"

	"drover/activities/target"
	"drover/activities/target/local"
	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/workflows/api"
)

const diskBytes = 4 << 20

// store is a replica store with one disk at one point; data in two ranges.
type store struct {
	replica.Store
	content []byte
	reads   int
	fail    error // of the next read
}

func (s *store) OpenReader(context.Context, ident.MachineID) (replica.Reader, error) {
	return &reader{store: s}, nil
}

type reader struct {
	replica.Reader
	store *store
}

func (r *reader) OpenDisk(context.Context, ident.Seq, ident.DiskID) (replica.DiskReader, error) {
	return &disk{store: r.store}, nil
}
func (r *reader) Close() error { return nil }

type disk struct{ store *store }

func (d *disk) Size() int64  { return diskBytes }
func (d *disk) Close() error { return nil }
func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	d.store.reads++
	if err := d.store.fail; err != nil {
		d.store.fail = nil
		return 0, err
	}
	n := copy(p, d.store.content[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (*disk) ReadSums(int64, []uint64) error { return errors.ErrUnsupported }

// ranges that hold data: the first block, and everything from the third MiB.
func (d *disk) NextData(offset int64) (checksum.Range, bool, error) {
	for _, r := range []checksum.Range{{Offset: 0, Length: 4096}, {Offset: 2 << 20, Length: 2 << 20}} {
		if offset < r.End() {
			start := max(offset, r.Offset)
			return checksum.Range{Offset: start, Length: r.End() - start}, true, nil
		}
	}
	return checksum.Range{}, false, nil
}

func setup(t *testing.T) (*target.Activities, *store, api.CreateMachineInput, string) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "networks.yaml"), []byte(`networks:
  - name: prod
    subnets: [{name: servers, cidr: 10.20.0.0/29}]
    gateways: [internet]
  - name: sandbox
    isolated: true
    subnets: [{name: servers, cidr: 10.99.0.0/24}]
  - name: lie
    isolated: true
    subnets: [{name: servers, cidr: 10.98.0.0/24}]
    peerings: [prod]
`), 0o600))
	cloud, err := local.Open(dir)
	require.NoError(t, err)
	s := &store{content: make([]byte, diskBytes)}
	for i := range s.content[2<<20:] {
		s.content[2<<20+i] = byte(i * 31 >> 3)
	}
	copy(s.content, "first block")
	machine := ident.NewMachineID("vc", "vm")
	d := api.VMDisk{ID: ident.NewDiskID(machine, "b"), Label: "Hard disk 1", Size: diskBytes}
	in := api.CreateMachineInput{
		Machine: machine, Name: "../db-1", Run: "failover/1", Disks: []api.VMDisk{d}, CPUs: 2, Memory: 2048,
		Point:   replica.Point{ID: 7, Disks: []replica.Disk{{Disk: changeset.Disk{ID: d.ID, Size: diskBytes}}}},
		Network: "prod", Target: api.Target{Subnet: "servers"},
	}
	return target.New(cloud, s), s, in, dir
}

func TestLifeOfAMachine(t *testing.T) {
	a, s, in, dir := setup(t)
	ref := api.TargetRef{Name: in.Name, Run: in.Run}
	m, err := a.CreateMachine(t.Context(), in)
	require.NoError(t, err)
	require.Equal(t, "local-2-4", m.Size)
	require.Equal(t, "10.20.0.4", m.Address)
	require.False(t, m.Running)
	require.Equal(t, in.Run, m.Tags[target.TagRun])
	got, err := os.ReadFile(m.Disks[0].Location)
	require.NoError(t, err)
	require.True(t, bytes.Equal(s.content, got))
	rel, err := filepath.Rel(dir, m.Disks[0].Location)
	require.NoError(t, err)
	require.True(t, filepath.IsLocal(rel), "a name never leads out of the directory: %s", rel)

	reads := s.reads
	again, err := a.CreateMachine(t.Context(), in)
	require.NoError(t, err)
	require.Equal(t, m, again, "a retry finds the same machine")
	require.Equal(t, reads, s.reads, "and copies nothing")

	check, err := a.CheckMachine(t.Context(), ref)
	require.NoError(t, err)
	require.False(t, check.Ready)
	m, err = a.StartMachine(t.Context(), ref)
	require.NoError(t, err)
	require.True(t, m.Running)
	check, err = a.CheckMachine(t.Context(), ref)
	require.NoError(t, err)
	require.True(t, check.Ready, check.Evidence)
	require.NoError(t, os.Truncate(m.Disks[0].Location, 1))
	check, err = a.CheckMachine(t.Context(), ref)
	require.NoError(t, err)
	require.False(t, check.Ready, "a disk that is not whole is no running machine")

	require.NoError(t, a.StopMachine(t.Context(), ref))
	require.NoError(t, a.DeleteMachine(t.Context(), ref))
	require.NoError(t, a.DeleteMachine(t.Context(), ref))
	left, err := local.List(dir)
	require.NoError(t, err)
	require.Empty(t, left)
	_, err = a.StartMachine(t.Context(), ref)
	requireCode(t, err, api.CodeNotFound)
}

func TestCreateGoesOnAfterAFailure(t *testing.T) {
	a, s, in, dir := setup(t)
	s.fail = errors.New("read error")
	_, err := a.CreateMachine(t.Context(), in)
	requireCode(t, err, api.CodeTarget)
	all, err := local.List(dir)
	require.NoError(t, err)
	require.False(t, all[0].Disks[0].Filled)
	m, err := a.CreateMachine(t.Context(), in)
	require.NoError(t, err)
	got, err := os.ReadFile(m.Disks[0].Location)
	require.NoError(t, err)
	require.True(t, bytes.Equal(s.content, got))

	s.fail = replica.ErrCorrupt
	in.Run = "failover/2"
	_, err = a.CreateMachine(t.Context(), in)
	requireCode(t, err, api.CodeReplicaDamaged)
}

func TestNetworks(t *testing.T) {
	a, _, in, _ := setup(t)
	require.NoError(t, a.CheckNetwork(t.Context(), api.CheckNetworkInput{Network: "prod"}))
	require.NoError(t, a.CheckNetwork(t.Context(), api.CheckNetworkInput{Network: "sandbox", Isolated: true}))
	requireCode(t, a.CheckNetwork(t.Context(), api.CheckNetworkInput{Network: "prod", Isolated: true}), api.CodeNotIsolated)
	requireCode(t, a.CheckNetwork(t.Context(), api.CheckNetworkInput{Network: "lie", Isolated: true}), api.CodeNotIsolated)
	requireCode(t, a.CheckNetwork(t.Context(), api.CheckNetworkInput{Network: "none"}), api.CodeNotFound)

	// 10.20.0.0/29 has room for .4 to .7.
	for i, want := range []string{"10.20.0.4", "10.20.0.5", "10.20.0.6", "10.20.0.7"} {
		in.Name = string(rune('a' + i))
		m, err := a.CreateMachine(t.Context(), in)
		require.NoError(t, err)
		require.Equal(t, want, m.Address)
	}
	in.Name = "z"
	_, err := a.CreateMachine(t.Context(), in)
	requireCode(t, err, api.CodeTarget)
	in.Network, in.Target.Address = "sandbox", "10.20.0.9"
	_, err = a.CreateMachine(t.Context(), in)
	requireCode(t, err, api.CodeTarget)
}

func TestSizes(t *testing.T) {
	a, _, in, _ := setup(t)
	in.CPUs, in.Memory = 3, 1024
	m, err := a.CreateMachine(t.Context(), in)
	require.NoError(t, err)
	require.Equal(t, "local-4-16", m.Size)
	in.Run, in.Target.Size = "2", "huge"
	_, err = a.CreateMachine(t.Context(), in)
	requireCode(t, err, api.CodeInvalid)
	in.Target.Size, in.CPUs = "", 1000
	_, err = a.CreateMachine(t.Context(), in)
	requireCode(t, err, api.CodeInvalid)
}

func requireCode(t *testing.T, err error, code string) {
	t.Helper()
	var app *temporal.ApplicationError
	require.ErrorAs(t, err, &app)
	require.Equal(t, code, app.Type(), app.Error())
}
