// Package blockblob keeps change sets in a container of an Azure Storage account, one
// block blob each. It may be another account than the replicas', with another endpoint.
//
//	sets/<machine>/<sequence>-<epoch>.cs   a change set, written once
//	fence/<machine>                        the lowest epoch that may put
//
// A change set that was deleted stays for the keep time, marked in its metadata, and is
// not listed; then it goes.
package blockblob

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	sdk "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"golang.org/x/sync/errgroup"

	"drover/datapath/azstorage"
	"drover/datapath/cachestore"
	"drover/datapath/ident"
)

const (
	setsPrefix   = "sets/"
	fencePrefix  = "fence/"
	objectSuffix = ".cs"
	objectFormat = "%020d-%020d"
	metaDeleted  = "droverdeleted" // when, in seconds since 1970
	blockBytes   = 8 << 20
	parallel     = 4
	maxFence     = 32 // bytes of a fence
	maxRaces     = 20
	leastSweep   = time.Minute // between two looks for what is past its keep time
)

// Config says which container.
type Config struct {
	Account azstorage.Account
	// Keep is how long a change set stays after it was deleted.
	Keep time.Duration
}

// Store is the container. It is safe for concurrent use.
type Store struct {
	c    *azstorage.Container
	keep time.Duration
	now  func() time.Time

	mu    sync.Mutex
	swept time.Time
}

var _ cachestore.Store = (*Store)(nil)

// Open connects to the container, which must be there.
func Open(ctx context.Context, c Config) (*Store, error) {
	box, err := azstorage.Open(c.Account)
	if err != nil {
		return nil, fmt.Errorf("open the cache: %w", err)
	}
	if err := box.Check(ctx); err != nil {
		return nil, fmt.Errorf("open the cache %s: %w", box.Name(), err)
	}
	return &Store{c: box, keep: c.Keep, now: time.Now}, nil
}

func prefix(m ident.MachineID) string { return setsPrefix + m.String() + "/" }

func path(n cachestore.Name) string {
	return prefix(n.Machine) + fmt.Sprintf(objectFormat, n.Seq, n.Epoch) + objectSuffix
}

// fence reads the lowest epoch that may put.
func (s *Store) fence(ctx context.Context, m ident.MachineID) (ident.Epoch, azstorage.If, error) {
	b, tag, err := s.c.Get(ctx, fencePrefix+m.String(), maxFence)
	if errors.Is(err, azstorage.ErrNotFound) {
		return 0, azstorage.If{Absent: true}, nil
	}
	if err != nil {
		return 0, azstorage.If{}, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, azstorage.If{}, fmt.Errorf("the fence is damaged: %w", err)
	}
	return ident.Epoch(n), azstorage.If{Is: tag}, nil
}

func (s *Store) allowed(ctx context.Context, name cachestore.Name) error {
	fence, _, err := s.fence(ctx, name.Machine)
	if err == nil && name.Epoch < fence {
		err = fmt.Errorf("%w (epoch %d, ours is %d)", cachestore.ErrFenced, fence, name.Epoch)
	}
	return err
}

// Put stores an object; see [cachestore.Store]. The fence is looked at before and
// after: a Put that was under way when it was raised is refused, and what it wrote is
// deleted.
func (s *Store) Put(ctx context.Context, name cachestore.Name, content io.ReaderAt, size int64) error {
	if err := s.put(ctx, name, content, size); err != nil {
		return fmt.Errorf("put change set %d of %s into the cache: %w", name.Seq, name.Machine, err)
	}
	return nil
}

func (s *Store) put(ctx context.Context, name cachestore.Name, content io.ReaderAt, size int64) error {
	if err := s.allowed(ctx, name); err != nil {
		return err
	}
	err := s.upload(ctx, path(name), content, size)
	if errors.Is(err, azstorage.ErrCondition) {
		return s.same(ctx, name, content, size)
	}
	if err != nil {
		return err
	}
	if err := s.allowed(ctx, name); err != nil {
		return errors.Join(err, s.c.Remove(ctx, path(name), azstorage.If{}))
	}
	return nil
}

// upload writes the blob, whole and once.
func (s *Store) upload(ctx context.Context, path string, content io.ReaderAt, size int64) error {
	once := azstorage.If{Absent: true}
	if size <= blockBytes {
		b, err := readBlock(content, 0, size)
		if err != nil {
			return err
		}
		_, err = s.c.Put(ctx, path, b, once, nil)
		return err
	}
	b := s.c.NewBlockBlobClient(path)
	upload := rand.Text() // blocks of another upload of the same name are never ours
	var ids []string
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for at := int64(0); at < size; at += blockBytes {
		id := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%s-%06d", upload, len(ids)))
		ids = append(ids, id)
		g.Go(func() error {
			data, err := readBlock(content, at, min(blockBytes, size-at))
			if err != nil {
				return err
			}
			_, err = b.StageBlock(gctx, id, streaming.NopCloser(bytes.NewReader(data)), &sdk.StageBlockOptions{TransactionalValidation: azstorage.CRC64(data)})
			return azstorage.Clean(err)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	_, err := b.CommitBlockList(ctx, ids, &sdk.CommitBlockListOptions{AccessConditions: once.Conditions()})
	return azstorage.Clean(err)
}

func readBlock(content io.ReaderAt, at, n int64) ([]byte, error) {
	b := make([]byte, n)
	if _, err := io.ReadFull(io.NewSectionReader(content, at, n), b); err != nil {
		return nil, errors.Join(io.ErrUnexpectedEOF, err)
	}
	return b, nil
}

// same gives ErrExists unless what is there has the content.
func (s *Store) same(ctx context.Context, name cachestore.Name, content io.ReaderAt, size int64) error {
	o, err := s.Open(ctx, name)
	if err != nil {
		return err
	}
	defer func() { _ = o.Close() }() // only read
	if o.Size() != size {
		return cachestore.ErrExists
	}
	for at := int64(0); at < size; at += blockBytes {
		n := min(blockBytes, size-at)
		have, err := readBlock(o, at, n)
		if err != nil {
			return err
		}
		want, err := readBlock(content, at, n)
		if err != nil {
			return err
		}
		if !bytes.Equal(have, want) {
			return cachestore.ErrExists
		}
	}
	return nil
}

// List gives the machine's objects.
func (s *Store) List(ctx context.Context, machine ident.MachineID) ([]cachestore.Name, error) {
	var out []cachestore.Name
	err := s.c.Each(ctx, prefix(machine), container.ListBlobsInclude{Metadata: true}, func(b *container.BlobItem) error {
		base, ok := strings.CutSuffix(strings.TrimPrefix(*b.Name, prefix(machine)), objectSuffix)
		n := cachestore.Name{Machine: machine}
		if !ok || azstorage.Meta(b.Metadata, metaDeleted) != "" {
			return nil
		}
		if _, err := fmt.Sscanf(base, "%d-%d", &n.Seq, &n.Epoch); err == nil && fmt.Sprintf(objectFormat, n.Seq, n.Epoch) == base {
			out = append(out, n)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the cache of %s: %w", machine, err)
	}
	slices.SortFunc(out, func(a, b cachestore.Name) int {
		return cmp.Or(cmp.Compare(a.Seq, b.Seq), cmp.Compare(a.Epoch, b.Epoch))
	})
	return out, nil
}

// Delete removes an object, or marks it as of no use any more when it is to be kept
// for a while; an absent one is no error.
func (s *Store) Delete(ctx context.Context, name cachestore.Name) error {
	var err error
	if s.keep <= 0 {
		err = s.c.Remove(ctx, path(name), azstorage.If{})
	} else {
		_, err = s.c.NewBlobClient(path(name)).SetMetadata(ctx, map[string]*string{metaDeleted: to.Ptr(strconv.FormatInt(s.now().Unix(), 10))}, nil)
		if err = azstorage.Clean(err); errors.Is(err, azstorage.ErrNotFound) {
			err = nil
		}
		if err == nil {
			err = s.sweep(ctx)
		}
	}
	if err != nil {
		return fmt.Errorf("delete change set %d of %s from the cache: %w", name.Seq, name.Machine, err)
	}
	return nil
}

// sweep removes what is past its keep time, of all machines, now and then.
func (s *Store) sweep(ctx context.Context) error {
	now := s.now()
	s.mu.Lock()
	due := now.Sub(s.swept) >= max(leastSweep, s.keep/8)
	if due {
		s.swept = now
	}
	s.mu.Unlock()
	if !due {
		return nil
	}
	return s.c.Each(ctx, setsPrefix, container.ListBlobsInclude{Metadata: true}, func(b *container.BlobItem) error {
		at, err := strconv.ParseInt(azstorage.Meta(b.Metadata, metaDeleted), 10, 64)
		if err != nil || now.Sub(time.Unix(at, 0)) < s.keep {
			return nil //nolint:nilerr // not marked
		}
		return s.c.Remove(ctx, *b.Name, azstorage.If{})
	})
}

// Fence refuses lower epochs from now on. It is never lowered.
func (s *Store) Fence(ctx context.Context, machine ident.MachineID, epoch ident.Epoch) error {
	if err := s.raise(ctx, machine, epoch); err != nil {
		return fmt.Errorf("fence %s in the cache: %w", machine, err)
	}
	return nil
}

func (s *Store) raise(ctx context.Context, machine ident.MachineID, epoch ident.Epoch) error {
	for range maxRaces {
		have, cond, err := s.fence(ctx, machine)
		if err != nil || have == epoch && !cond.Absent {
			return err
		}
		if have > epoch {
			return fmt.Errorf("%w (epoch %d, ours is %d)", cachestore.ErrFenced, have, epoch)
		}
		_, err = s.c.Put(ctx, fencePrefix+machine.String(), []byte(strconv.FormatUint(uint64(epoch), 10)+"\n"), cond, nil)
		if !errors.Is(err, azstorage.ErrCondition) {
			return err
		}
	}
	return fmt.Errorf("others raised it %d times meanwhile: try again", maxRaces)
}

// Open opens an object; ErrNotFound.
func (s *Store) Open(ctx context.Context, name cachestore.Name) (cachestore.Object, error) {
	b := s.c.NewBlobClient(path(name))
	p, err := b.GetProperties(ctx, nil)
	if err = azstorage.Clean(err); errors.Is(err, azstorage.ErrNotFound) {
		err = cachestore.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("open change set %d of %s in the cache: %w", name.Seq, name.Machine, err)
	}
	o := &object{b: b, size: *p.ContentLength}
	o.ctx, o.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return o, nil
}

// object reads a blob that never changes, some megabytes at once.
type object struct {
	b      *blob.Client
	size   int64
	ctx    context.Context // until Close: io.ReaderAt has none
	cancel context.CancelFunc

	mu    sync.Mutex
	start int64
	ahead []byte
}

func (o *object) Size() int64 { return o.size }

func (o *object) Close() error {
	o.cancel()
	return nil
}

// ReadAt reads from what was read ahead, and reads on ahead where that ends. What lies
// elsewhere is read as it is asked for: several may read at once, each in its place.
func (o *object) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("read a change set at %d", off)
	}
	want := p[:max(0, min(int64(len(p)), o.size-off))]
	if n, err = o.readAhead(want, off); err == nil && n < len(want) {
		if err = o.fetch(want[n:], off+int64(n)); err == nil {
			n = len(want)
		}
	}
	if err != nil {
		return n, fmt.Errorf("read a change set in the cache: %w", azstorage.Clean(err))
	}
	if len(want) < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// readAhead gives as much of p as is in what was read ahead, or can be by reading on.
func (o *object) readAhead(p []byte, off int64) (n int, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for n < len(p) {
		at := off + int64(n)
		end := o.start + int64(len(o.ahead))
		if at < o.start || at > end {
			return n, nil
		}
		if at == end {
			o.ahead, o.start = slices.Grow(o.ahead[:0], blockBytes)[:min(blockBytes, o.size-at)], at
			if err := o.fetch(o.ahead, at); err != nil {
				o.ahead = o.ahead[:0]
				return n, err
			}
		}
		n += copy(p[n:], o.ahead[at-o.start:])
	}
	return n, nil
}

func (o *object) fetch(p []byte, at int64) error {
	r, err := o.b.DownloadStream(o.ctx, &blob.DownloadStreamOptions{Range: blob.HTTPRange{Offset: at, Count: int64(len(p))}})
	if err != nil {
		return err
	}
	body := r.NewRetryReader(o.ctx, &blob.RetryReaderOptions{MaxRetries: 5})
	_, err = io.ReadFull(body, p)
	return errors.Join(err, body.Close())
}
