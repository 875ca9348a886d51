package pageblob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	sdk "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"

	"drover/datapath/azstorage"
	"drover/datapath/replica"
)

const (
	pageBytes = 512
	maxPut    = 4 << 20 // of one Put Page
	// Metadata of page blobs and their snapshots; names are C# identifiers.
	metaSize    = "droversize" // of the disk, in bytes, that the blob is made for
	metaWord    = "droverword" // fence word of who made the snapshot
	metaRemoved = "droverremoved"
	maxReads    = 5 // tries to read a body to its end
)

// pages is a page blob, or a snapshot of one, which is only read.
type pages struct {
	name    string
	store   *Store
	c       *sdk.Client
	pacer   *azstorage.Pacer
	leasing sync.Mutex // held while the lease is taken
}

func (s *Store) pages(name string) *pages {
	return &pages{name: name, store: s, c: s.c.NewPageBlobClient(name), pacer: azstorage.NewPacer(s.limits, s.slots)}
}

// at gives the snapshot of the blob.
func (p *pages) at(snapshot string) (*pages, error) {
	c, err := p.c.WithSnapshot(snapshot)
	if err != nil {
		return nil, fmt.Errorf("snapshot %s of %s: %w", snapshot, p.name, azstorage.Clean(err))
	}
	return &pages{name: p.name + "@" + snapshot, store: p.store, c: c, pacer: p.pacer}, nil
}

// whole checks what the emulator does not: whole pages, no more than a request takes.
func whole(off, n int64) error {
	if off < 0 || n <= 0 || off%pageBytes != 0 || n%pageBytes != 0 {
		return fmt.Errorf("%d bytes at %d are not whole pages", n, off)
	}
	return nil
}

// fenced turns the refusal of a write by its sequence number into ErrFenced.
func (p *pages) fenced(what string, err error) error {
	if err = azstorage.Clean(err); err == nil {
		return nil
	}
	if errors.Is(err, azstorage.ErrCondition) && !lacksLease(err) {
		err = errors.Join(replica.ErrFenced, err)
	}
	return fmt.Errorf("%s %s: %w", what, p.name, err)
}

func sequence(word uint64) *sdk.SequenceNumberAccessConditions {
	return &sdk.SequenceNumberAccessConditions{IfSequenceNumberEqualTo: to.Ptr(int64(word))} //nolint:gosec // epochs are below 2^31
}

// put writes whole pages, 4 MiB at most.
func (p *pages) put(ctx context.Context, word uint64, off int64, data []byte) (tag azstorage.Tag, err error) {
	n := int64(len(data))
	if err := whole(off, n); err != nil {
		return "", fmt.Errorf("write %s: %w", p.name, err)
	}
	if n > maxPut {
		return "", fmt.Errorf("write %s: %d bytes, one request takes %d", p.name, n, maxPut)
	}
	err = p.leased(ctx, word, func(lease string) error {
		r, err := p.c.UploadPages(p.pacer.With(ctx, len(data)), streaming.NopCloser(bytes.NewReader(data)), blob.HTTPRange{Offset: off, Count: n},
			&sdk.UploadPagesOptions{TransactionalValidation: azstorage.CRC64(data), SequenceNumberAccessConditions: sequence(word), AccessConditions: azstorage.If{Lease: lease}.Conditions()})
		if err == nil {
			tag = azstorage.Tag(*r.ETag)
		}
		return p.fenced("write", err)
	})
	return tag, err
}

// clear makes whole pages empty.
func (p *pages) clear(ctx context.Context, word uint64, off, n int64) (tag azstorage.Tag, err error) {
	if err := whole(off, n); err != nil {
		return "", fmt.Errorf("clear %s: %w", p.name, err)
	}
	err = p.leased(ctx, word, func(lease string) error {
		r, err := p.c.ClearPages(p.pacer.With(ctx, 0), blob.HTTPRange{Offset: off, Count: n},
			&sdk.ClearPagesOptions{SequenceNumberAccessConditions: sequence(word), AccessConditions: azstorage.If{Lease: lease}.Conditions()})
		if err == nil {
			tag = azstorage.Tag(*r.ETag)
		}
		return p.fenced("clear", err)
	})
	return tag, err
}

// read fills b from the offset on.
func (p *pages) read(ctx context.Context, off int64, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	r, err := p.c.DownloadStream(p.pacer.With(ctx, len(b)), &blob.DownloadStreamOptions{Range: blob.HTTPRange{Offset: off, Count: int64(len(b))}})
	if err != nil {
		return p.readErr(err)
	}
	body := r.NewRetryReader(ctx, &blob.RetryReaderOptions{MaxRetries: maxReads})
	_, err = io.ReadFull(body, b)
	if err = errors.Join(err, body.Close()); err != nil {
		return p.readErr(err)
	}
	return nil
}

func (p *pages) readErr(err error) error {
	err = azstorage.Clean(err)
	if errors.Is(err, azstorage.ErrNotFound) {
		err = errors.Join(replica.ErrNotFound, err)
	}
	return fmt.Errorf("read %s: %w", p.name, err)
}

// written calls f for the ranges of [off, off+n) that have pages, in order.
func (p *pages) written(ctx context.Context, off, n int64, f func(from, to int64) error) error {
	// The options must not be nil: the SDK's pager panics on its second page without them.
	pager := p.c.NewGetPageRangesPager(&sdk.GetPageRangesOptions{Range: blob.HTTPRange{Offset: off, Count: n}})
	for pager.More() {
		r, err := pager.NextPage(p.pacer.With(ctx, 0))
		if err != nil {
			return p.readErr(err)
		}
		for _, x := range r.PageRange {
			from, end := max(*x.Start, off), min(*x.End+1, off+n)
			if from < end {
				if err := f(from, end); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// snapshot makes a snapshot that tells who made it and which size its disk has.
func (p *pages) snapshot(ctx context.Context, word uint64, size int64) (string, error) {
	r, err := p.c.CreateSnapshot(p.pacer.With(ctx, 0), &blob.CreateSnapshotOptions{Metadata: map[string]*string{
		metaWord: to.Ptr(strconv.FormatUint(word, 16)), metaSize: to.Ptr(strconv.FormatInt(size, 10)),
	}})
	if err != nil {
		return "", fmt.Errorf("make a snapshot of %s: %w", p.name, azstorage.Clean(err))
	}
	return *r.Snapshot, nil
}

// dropSnapshot deletes a snapshot; an absent one is no error.
func (p *pages) dropSnapshot(ctx context.Context, snapshot string) error {
	at, err := p.at(snapshot)
	if err != nil {
		return err
	}
	_, err = at.c.Delete(p.pacer.With(ctx, 0), nil)
	if err = azstorage.Clean(err); err != nil && !errors.Is(err, azstorage.ErrNotFound) {
		return fmt.Errorf("delete snapshot %s: %w", at.name, err)
	}
	return nil
}

// raise raises the sequence number to the word; one that is higher already is
// another owner's.
func (p *pages) raise(ctx context.Context, word uint64) error {
	is := word
	err := p.leased(ctx, word, func(lease string) error {
		r, err := p.c.UpdateSequenceNumber(p.pacer.With(ctx, 0), &sdk.UpdateSequenceNumberOptions{
			ActionType: to.Ptr(sdk.SequenceNumberActionTypeMax), SequenceNumber: to.Ptr(int64(word)), //nolint:gosec // epochs are below 2^31
			AccessConditions: azstorage.If{Lease: lease}.Conditions(),
		})
		if err == nil && r.BlobSequenceNumber != nil {
			is = uint64(*r.BlobSequenceNumber) //nolint:gosec // never negative
		}
		return azstorage.Clean(err)
	})
	if errors.Is(err, azstorage.ErrNotFound) {
		return fmt.Errorf("%s is gone: %w", p.name, replica.ErrCorrupt)
	}
	if err != nil {
		return fmt.Errorf("raise the sequence number of %s: %w", p.name, err)
	}
	if is != word {
		return p.behind(is, word)
	}
	return nil
}

// remove deletes the blob with its snapshots, after breaking whatever lease it has; an absent one is no error.
func (p *pages) remove(ctx context.Context, cond azstorage.If) error {
	err := p.delete(ctx, cond)
	if azstorage.HasCode(err, bloberror.LeaseIDMissing) {
		if err = p.breakLease(ctx, cond); err == nil {
			err = p.delete(ctx, cond)
		}
	}
	if err != nil && !errors.Is(err, azstorage.ErrNotFound) {
		return fmt.Errorf("delete %s: %w", p.name, err)
	}
	return nil
}

func (p *pages) delete(ctx context.Context, cond azstorage.If) error {
	_, err := p.c.Delete(p.pacer.With(ctx, 0), &blob.DeleteOptions{DeleteSnapshots: to.Ptr(blob.DeleteSnapshotsOptionTypeInclude), AccessConditions: cond.Conditions()})
	return azstorage.Clean(err)
}

// make makes the blob, empty, of a disk that has none; what an earlier, unfinished
// attempt left is deleted. One with a lease is no such thing: it has, or had, an owner.
func (p *pages) make(ctx context.Context, word uint64, bytes int64) error {
	o := &sdk.CreateOptions{
		SequenceNumber: to.Ptr(int64(word)), Metadata: map[string]*string{metaSize: to.Ptr("0")}, //nolint:gosec // epochs are below 2^31
		AccessConditions: azstorage.If{Absent: true}.Conditions(),
	}
	_, err := p.c.Create(ctx, bytes, o)
	if err = azstorage.Clean(err); errors.Is(err, azstorage.ErrCondition) {
		if err = p.delete(ctx, azstorage.If{}); err == nil || errors.Is(err, azstorage.ErrNotFound) {
			_, err = p.c.Create(ctx, bytes, o)
		}
	}
	if err = azstorage.Clean(err); azstorage.HasCode(err, bloberror.LeaseIDMissing) {
		err = fmt.Errorf("%w: it has a lease already; if the state was deleted by hand, break the lease: %w", errRaced, err)
	}
	if err != nil {
		return fmt.Errorf("make page blob %s: %w", p.name, err)
	}
	return nil
}

// props is what is asked of a page blob before it is changed.
type props struct {
	length, size int64
	word         uint64
	tag          azstorage.Tag
}

func (p *pages) props(ctx context.Context) (props, error) {
	r, err := p.c.GetProperties(p.pacer.With(ctx, 0), nil)
	if err = azstorage.Clean(err); errors.Is(err, azstorage.ErrNotFound) {
		return props{}, fmt.Errorf("%s is gone: %w", p.name, replica.ErrCorrupt)
	}
	if err != nil {
		return props{}, fmt.Errorf("look at %s: %w", p.name, err)
	}
	out := props{tag: azstorage.Tag(*r.ETag)}
	if r.ContentLength != nil {
		out.length = *r.ContentLength
	}
	if r.BlobSequenceNumber != nil {
		out.word = uint64(*r.BlobSequenceNumber) //nolint:gosec // never negative
	}
	out.size, err = strconv.ParseInt(azstorage.Meta(r.Metadata, metaSize), 10, 64)
	if err != nil {
		return out, fmt.Errorf("%s does not say which size its disk has: %w", p.name, replica.ErrCorrupt)
	}
	return out, nil
}

// resize and setSize change what no sequence number guards: they ask for the version
// that a guarded write has just given.
func (p *pages) resize(ctx context.Context, word uint64, tag azstorage.Tag, length int64) error {
	return p.leased(ctx, word, func(lease string) error {
		_, err := p.c.Resize(p.pacer.With(ctx, 0), length, &sdk.ResizeOptions{AccessConditions: azstorage.If{Is: tag, Lease: lease}.Conditions()})
		return p.fenced("resize", err)
	})
}

func (p *pages) setSize(ctx context.Context, word uint64, tag azstorage.Tag, size int64) error {
	return p.leased(ctx, word, func(lease string) error {
		_, err := p.c.SetMetadata(p.pacer.With(ctx, 0), map[string]*string{metaSize: to.Ptr(strconv.FormatInt(size, 10))},
			&blob.SetMetadataOptions{AccessConditions: azstorage.If{Is: tag, Lease: lease}.Conditions()})
		return p.fenced("note the disk's size of", err)
	})
}
