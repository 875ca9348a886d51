// Package pageblob keeps machines' replicas in a container of an Azure Storage account:
// each disk is a fixed VHD in a page blob, each recovery point a snapshot of it.
//
// The layout, and why a crash between any two steps is harmless, is described in
// FORMAT.md. Several processes may use one container at once: writers exclude each
// other by the page blobs' sequence number and the version of the state blob, readers
// read snapshots.
package pageblob

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/google/uuid"

	"drover/datapath/azstorage"
	"drover/datapath/failpoint"
	"drover/datapath/ident"
	"drover/datapath/replica"
)

const (
	identityName    = "store.json"
	documentsPrefix = "documents/"
	statePrefix     = "state/"
	holdsPrefix     = "holds/"
	machinesPrefix  = "machines/"
	jsonSuffix      = ".json"
	diskSuffix      = ".vhd"
	sumsSuffix      = ".sums"
	pointSuffix     = ".point.json"
	maxIdentity     = 1 << 10 // bytes of store.json
)

// Config says which container, and how much is asked of it.
type Config struct {
	Account azstorage.Account
	// Limits are what one page blob takes; zero: those of a standard one.
	Limits azstorage.Limits
	// Parallel is how many writes to one machine's disks are under way; zero: 8.
	Parallel int
	// InFlight is how many requests for pages are under way for all machines together; zero:
	// 64. It is more than Parallel, so that one machine whose requests hang leaves room.
	InFlight int
}

const (
	defaultParallel = 8
	defaultInFlight = 64
)

// Store is a container of replicas. It is safe for concurrent use.
type Store struct {
	c        *azstorage.Container
	limits   azstorage.Limits
	slots    *azstorage.Slots
	parallel int
	now      func() time.Time
	// failpoint is called at each durable step; tests set it to break off there.
	failpoint func(step string) error
}

var _ replica.Store = (*Store)(nil)

// Open connects to the container, which must be there.
func Open(ctx context.Context, c Config) (*Store, error) {
	box, err := azstorage.Open(c.Account)
	if err != nil {
		return nil, fmt.Errorf("open replica store: %w", err)
	}
	s := &Store{c: box, limits: c.Limits, parallel: c.Parallel, now: time.Now}
	if s.limits == (azstorage.Limits{}) {
		s.limits = azstorage.StandardBlob()
	}
	if s.parallel == 0 {
		s.parallel = defaultParallel
	}
	inFlight := c.InFlight
	if inFlight == 0 {
		inFlight = max(defaultInFlight, 2*s.parallel)
	}
	if inFlight <= s.parallel {
		return nil, fmt.Errorf("open replica store: %d requests in flight for all machines, %d for one: want more for all", inFlight, s.parallel)
	}
	s.slots = azstorage.NewSlots(inFlight)
	if err := box.Check(ctx); err != nil {
		return nil, fmt.Errorf("open replica store %s: %w", box.Name(), err)
	}
	return s, nil
}

// Close ends the use of the store. Writers and readers are closed by their owners.
func (s *Store) Close() error { return nil }

// step is a place where a crash must do no harm.
func (s *Store) step(name string) error {
	failpoint.Hit(name)
	if s.failpoint == nil {
		return nil
	}
	return s.failpoint(name)
}

func (s *Store) machine(id ident.MachineID) machine { return machine{store: s, id: id} }

// ID reads the store's identity, making it when there is none.
func (s *Store) ID(ctx context.Context) (string, error) {
	var is struct {
		ID string `json:"id"`
	}
	b, _, err := s.c.Get(ctx, identityName, maxIdentity)
	if errors.Is(err, azstorage.ErrNotFound) {
		if b, err = json.Marshal(map[string]string{"id": uuid.NewString()}); err == nil {
			_, err = s.c.Put(ctx, identityName, b, azstorage.If{Absent: true}, nil)
		}
		if errors.Is(err, azstorage.ErrCondition) { // another made it, or our own reply was lost
			b, _, err = s.c.Get(ctx, identityName, maxIdentity)
		}
	}
	if err == nil {
		err = json.Unmarshal(b, &is)
	}
	if err == nil && is.ID == "" {
		err = fmt.Errorf("%s has no id: %w", identityName, replica.ErrCorrupt)
	}
	if err != nil {
		return "", fmt.Errorf("identity of replica store %s: %w", s.c.Name(), err)
	}
	return is.ID, nil
}

// Fence raises the epoch: first in the state, so that an older writer commits nothing
// more, then in all page blobs, so that it writes nothing more.
func (s *Store) Fence(ctx context.Context, id ident.MachineID, epoch ident.Epoch) error {
	if err := s.fence(ctx, id, epoch); err != nil {
		return fmt.Errorf("fence replica of %s at epoch %d: %w", id, epoch, err)
	}
	return nil
}

func (s *Store) fence(ctx context.Context, id ident.MachineID, epoch ident.Epoch) error {
	if epoch > maxEpoch {
		return fmt.Errorf("a page blob store counts to %d", maxEpoch)
	}
	m := s.machine(id)
	if _, err := m.load(ctx); err != nil {
		return err
	}
	mf, err := m.change(ctx, func(mf *manifest) error {
		if epoch < mf.State.Epoch {
			return fmt.Errorf("it is at %d already: %w", mf.State.Epoch, replica.ErrFenced)
		}
		mf.State.Epoch = epoch
		return nil
	})
	if err != nil {
		return err
	}
	return m.raise(ctx, mf)
}

// Machines lists the machines that have a state, in order of their ids.
func (s *Store) Machines(ctx context.Context) ([]ident.MachineID, error) {
	var out []ident.MachineID
	err := s.c.Each(ctx, statePrefix, container.ListBlobsInclude{Metadata: true}, func(b *container.BlobItem) error {
		name, ok := strings.CutSuffix(strings.TrimPrefix(*b.Name, statePrefix), jsonSuffix)
		if id, err := ident.ParseMachineID(name); ok && err == nil && azstorage.Meta(b.Metadata, metaRemoved) == "" {
			out = append(out, id)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list machines of replica store %s: %w", s.c.Name(), err)
	}
	return out, nil
}

// Remove deletes the machine's blobs. A machine that is not there is no error, so
// that it can be retried.
func (s *Store) Remove(ctx context.Context, id ident.MachineID, epoch ident.Epoch) error {
	if err := s.remove(ctx, id, epoch); err != nil && !errors.Is(err, replica.ErrNotFound) {
		return fmt.Errorf("remove replica of %s: %w", id, err)
	}
	return nil
}

func (s *Store) remove(ctx context.Context, id ident.MachineID, epoch ident.Epoch) error {
	m := s.machine(id)
	mf, _, err := m.loadAny(ctx)
	if err != nil {
		return err
	}
	if epoch < mf.State.Epoch {
		return fmt.Errorf("epoch %d, the store is at %d: %w", epoch, mf.State.Epoch, replica.ErrFenced)
	}
	if err := m.closeHolds(ctx, mf); err != nil {
		return err
	}
	mf, err = m.change(ctx, func(mf *manifest) error {
		if epoch < mf.State.Epoch {
			return fmt.Errorf("epoch %d, the store is at %d: %w", epoch, mf.State.Epoch, replica.ErrFenced)
		}
		mf.State.Epoch, mf.Session, mf.Removed = epoch, nextSession(mf.Session, s.now()), true
		return nil
	})
	if err != nil {
		return err
	}
	return m.finishRemove(ctx, mf)
}

// finishRemove deletes all blobs of a machine that is marked as removed, its state
// last. It may be repeated.
func (m machine) finishRemove(ctx context.Context, mf *manifest) error {
	if err := m.raise(ctx, mf); err != nil && !errors.Is(err, replica.ErrCorrupt) { // a blob that is gone was deleted by an earlier try
		return err
	}
	err := m.store.c.Each(ctx, m.prefix(), container.ListBlobsInclude{}, func(b *container.BlobItem) error {
		return m.store.pages(*b.Name).remove(ctx, azstorage.If{})
	})
	if err != nil {
		return err
	}
	if err := m.store.c.Remove(ctx, m.holdsName(), azstorage.If{}); err != nil {
		return err
	}
	return m.store.c.Remove(ctx, m.stateName(), azstorage.If{})
}

// PutDocument keeps the document durably, replacing one of the same name.
func (s *Store) PutDocument(ctx context.Context, name string, content []byte) error {
	err := replica.CheckDocument(name, content)
	if err == nil {
		_, err = s.c.Put(ctx, documentsPrefix+name, content, azstorage.If{}, nil)
	}
	if err != nil {
		return fmt.Errorf("put document %q: %w", name, err)
	}
	return nil
}

// RemoveDocument removes the document durably.
func (s *Store) RemoveDocument(ctx context.Context, name string) error {
	err := replica.CheckDocument(name, nil)
	if err == nil {
		err = s.c.Remove(ctx, documentsPrefix+name, azstorage.If{})
	}
	if err != nil {
		return fmt.Errorf("remove document %q: %w", name, err)
	}
	return nil
}

// Documents reads all documents.
func (s *Store) Documents(ctx context.Context) (map[string][]byte, error) {
	out := map[string][]byte{}
	err := s.c.Each(ctx, documentsPrefix, container.ListBlobsInclude{}, func(b *container.BlobItem) error {
		name := strings.TrimPrefix(*b.Name, documentsPrefix)
		if !replica.DocumentName(name) {
			return nil
		}
		content, _, err := s.c.Get(ctx, *b.Name, replica.MaxDocument)
		if errors.Is(err, azstorage.ErrNotFound) { // removed meanwhile
			return nil
		}
		out[name] = content
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read documents of replica store %s: %w", s.c.Name(), err)
	}
	return out, nil
}
