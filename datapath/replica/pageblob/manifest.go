package pageblob

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"

	"drover/datapath/azstorage"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/replica/pageblob/vhd"
)

const (
	formatVersion = 1
	maxJSON       = 64 << 20 // of a blob that is read whole
	maxRaces      = 20       // how often a change is tried again because another came first
	// maxEpoch fits into a sequence number together with a session.
	maxEpoch = 1<<31 - 1
	// maxDisk is what a page blob takes, less the footer.
	maxDisk = 8<<40 - vhd.Align
)

// errRaced: another change of the state came first.
var errRaced = errors.New("the machine's state was changed meanwhile")

// manifest is a machine's state blob. Holds are kept apart.
type manifest struct {
	Version int           `json:"version"`
	State   replica.State `json:"state"`
	// Session and the epoch are the fence word: see word.
	Session uint32 `json:"session"`
	// Commit is another one each time, so that a writer knows its own when the reply was lost.
	Commit  string `json:"commit"`
	Removed bool   `json:"removed,omitempty"` // the machine is being removed
	// Pending is the change set whose writing was begun and is not committed.
	Pending *pending       `json:"pending,omitempty"`
	Retired []replica.Disk `json:"retired,omitempty"` // left the machine, but points need them
	// Unknown disks' content must be read before their checksums mean anything.
	Unknown   []ident.DiskID         `json:"unknown,omitempty"`
	Snapshots []pointBlobs           `json:"snapshots"` // one per point
	Data      map[ident.DiskID]int64 `json:"data"`      // bytes in blocks that are not zeros, about
}

type pending struct {
	Seq    ident.Seq    `json:"seq"`
	Digest ident.Digest `json:"digest"`
}

// pointBlobs is where a point lies.
type pointBlobs struct {
	Manifest string                    `json:"manifest"` // blob
	Disks    map[ident.DiskID]snapshot `json:"disks"`
}

// snapshot names the snapshots of a disk and of its checksums.
type snapshot struct {
	Disk string `json:"disk"`
	Sums string `json:"sums"`
}

// word is the sequence number that page blobs have while this state holds: every
// write asks for it. It rises with the epoch and with every session.
func (mf *manifest) word() uint64 { return wordOf(mf.State.Epoch, mf.Session) }

func wordOf(epoch ident.Epoch, session uint32) uint64 { return uint64(epoch)<<32 | uint64(session) }

// nextSession rises, also when a machine is removed and made again, by the clock.
func nextSession(last uint32, now time.Time) uint32 {
	return max(last+1, uint32(now.Unix())) //nolint:gosec // until the year 2106
}

// clone copies all that a mutation changes, so that the old one stays as it was.
func (mf *manifest) clone() *manifest {
	c := *mf
	c.State.Spec.Disks = slices.Clone(mf.State.Spec.Disks)
	c.State.Points = slices.Clone(mf.State.Points)
	c.Retired = slices.Clone(mf.Retired)
	c.Unknown = slices.Clone(mf.Unknown)
	c.Snapshots = slices.Clone(mf.Snapshots)
	c.Data = maps.Clone(mf.Data)
	return &c
}

// newest gives the last point, or nil.
func (mf *manifest) newest() *replica.Point {
	if n := len(mf.State.Points); n > 0 {
		return &mf.State.Points[n-1]
	}
	return nil
}

func (mf *manifest) point(id ident.Seq) int {
	return slices.IndexFunc(mf.State.Points, func(p replica.Point) bool { return p.ID == id })
}

// disks are the present and the retired ones.
func (mf *manifest) disks() []replica.Disk { return slices.Concat(mf.State.Spec.Disks, mf.Retired) }

// refers reports whether a point has the disk.
func (mf *manifest) refers(id ident.DiskID) bool {
	return slices.ContainsFunc(mf.Snapshots, func(b pointBlobs) bool { _, ok := b.Disks[id]; return ok })
}

func (mf *manifest) validate(id ident.MachineID) error {
	if mf.State.Spec.Machine != id || len(mf.Snapshots) != len(mf.State.Points) {
		return fmt.Errorf("it is of machine %s with %d points and the snapshots of %d: it was moved or edited",
			mf.State.Spec.Machine, len(mf.State.Points), len(mf.Snapshots))
	}
	if mf.State.Epoch > maxEpoch {
		return fmt.Errorf("epoch %d", mf.State.Epoch)
	}
	if err := errors.Join(replica.CheckDisks(mf.State.Spec.Disks), replica.CheckEachDisk(mf.Retired)); err != nil {
		return err
	}
	for i, p := range mf.State.Points {
		if i > 0 && p.ID <= mf.State.Points[i-1].ID {
			return fmt.Errorf("point %d after %d", p.ID, mf.State.Points[i-1].ID)
		}
		if err := replica.CheckDisks(p.Disks); err != nil {
			return fmt.Errorf("point %d: %w", p.ID, err)
		}
		for _, d := range p.Disks {
			if s := mf.Snapshots[i].Disks[d.ID]; s.Disk == "" || s.Sums == "" {
				return fmt.Errorf("point %d has no snapshot of disk %s", p.ID, d.ID)
			}
		}
	}
	return nil
}

// machine names the blobs of one machine.
type machine struct {
	store *Store
	id    ident.MachineID
}

func (m machine) stateName() string               { return statePrefix + m.id.String() + jsonSuffix }
func (m machine) holdsName() string               { return holdsPrefix + m.id.String() + jsonSuffix }
func (m machine) prefix() string                  { return machinesPrefix + m.id.String() + "/" }
func (m machine) diskName(id ident.DiskID) string { return m.prefix() + id.String() + diskSuffix }
func (m machine) sumsName(id ident.DiskID) string { return m.prefix() + id.String() + sumsSuffix }
func (m machine) pointName(s ident.Seq, w uint64) string {
	return fmt.Sprintf("%s%020d-%016x%s", m.prefix(), s, w, pointSuffix)
}

// loadAny reads the state, also of a machine that is being removed.
func (m machine) loadAny(ctx context.Context) (*manifest, azstorage.Tag, error) {
	b, tag, err := m.store.c.Get(ctx, m.stateName(), maxJSON)
	if errors.Is(err, azstorage.ErrNotFound) {
		return nil, "", fmt.Errorf("replica of machine %s: %w", m.id, replica.ErrNotFound)
	}
	if err != nil {
		return nil, "", fmt.Errorf("read the state of %s: %w", m.id, err)
	}
	mf, err := m.parse(b)
	return mf, tag, err
}

func (m machine) parse(b []byte) (*manifest, error) {
	mf := new(manifest)
	err := json.Unmarshal(b, mf)
	if mf.Version != formatVersion && (err == nil || mf.Version != 0) {
		return nil, fmt.Errorf("read the state of %s: %w: %d, this program reads %d: use the release that wrote it", m.id, replica.ErrVersion, mf.Version, formatVersion)
	}
	if err == nil {
		err = mf.validate(m.id)
	}
	if err != nil {
		return nil, fmt.Errorf("read the state of %s: %w: %w", m.id, replica.ErrCorrupt, err)
	}
	if mf.Data == nil {
		mf.Data = map[ident.DiskID]int64{}
	}
	return mf, nil
}

// load reads the state of a machine that is there.
func (m machine) load(ctx context.Context) (*manifest, error) {
	mf, _, err := m.loadAny(ctx)
	if err == nil && mf.Removed {
		return nil, fmt.Errorf("replica of machine %s: %w", m.id, replica.ErrNotFound)
	}
	return mf, err
}

// publish makes the manifest the machine's state, if the state is still as the
// condition says; errRaced otherwise.
func (m machine) publish(ctx context.Context, mf *manifest, cond azstorage.If) (azstorage.Tag, error) {
	c := mf.clone()
	for i := range c.State.Points {
		c.State.Points[i].Holds = nil
	}
	c.State.UsedBytes = 0
	c.Commit = rand.Text()
	b, err := json.Marshal(c)
	if err == nil && len(b) > maxJSON {
		err = fmt.Errorf("%d bytes, at most %d can be read again", len(b), maxJSON)
	}
	if err != nil {
		return "", fmt.Errorf("write the state of %s: %w", m.id, err)
	}
	var marks map[string]*string
	if c.Removed {
		marks = map[string]*string{metaRemoved: to.Ptr("true")}
	}
	tag, err := m.store.c.Put(ctx, m.stateName(), b, cond, marks)
	if !errors.Is(err, azstorage.ErrCondition) && !errors.Is(err, azstorage.ErrNotFound) {
		if err != nil {
			err = fmt.Errorf("write the state of %s: %w", m.id, err)
		}
		return tag, err
	}
	// Another came first, or it was ours and its reply was lost.
	is, tag, lerr := m.loadAny(ctx)
	if lerr == nil && is.Commit == c.Commit {
		return tag, nil
	}
	return "", errRaced
}

// change changes the state as f does, again when another change came first.
func (m machine) change(ctx context.Context, f func(*manifest) error) (*manifest, error) {
	for range maxRaces {
		mf, tag, err := m.loadAny(ctx)
		if err != nil {
			return nil, err
		}
		mf = mf.clone()
		if err := f(mf); err != nil {
			return nil, err
		}
		if _, err = m.publish(ctx, mf, azstorage.If{Is: tag}); !errors.Is(err, errRaced) {
			return mf, err
		}
	}
	return nil, fmt.Errorf("machine %s: %w, %d times: try again", m.id, errRaced, maxRaces)
}

// state gives the public state: the manifest, with holds and the room used.
func (m machine) state(ctx context.Context, mf *manifest) (replica.State, error) {
	s := mf.publicState()
	h, _, err := m.loadHolds(ctx)
	if err != nil {
		return replica.State{}, err
	}
	for i := range s.Points {
		s.Points[i].Holds = replica.LiveHolds(h.Holds[s.Points[i].ID], m.store.now())
	}
	return s, nil
}

// publicState is the state without holds.
func (mf *manifest) publicState() replica.State {
	s := mf.clone().State
	s.Empty = s.Empty && mf.Pending == nil
	for _, p := range s.Points {
		s.UsedBytes += p.UndoBytes
	}
	for _, n := range mf.Data {
		s.UsedBytes += n
	}
	return s
}

// checkSpec refuses what a page blob cannot be.
func checkSpec(epoch ident.Epoch, disks []replica.Disk) error {
	if epoch > maxEpoch {
		return fmt.Errorf("epoch %d: a page blob store counts to %d", epoch, maxEpoch)
	}
	if err := replica.CheckDisks(disks); err != nil {
		return err
	}
	for _, d := range disks {
		if d.Path != "" {
			return fmt.Errorf("disk %s is attached at %q: this store keeps disks in page blobs only", d.ID, d.Path)
		}
		if d.Size > maxDisk {
			return fmt.Errorf("disk %s of %d bytes: a page blob takes %d at most", d.ID, d.Size, int64(maxDisk))
		}
	}
	return nil
}
