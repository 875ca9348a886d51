package pageblob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
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
	name  string
	c     *sdk.Client
	pacer *azstorage.Pacer
}

func (s *Store) pages(name string) *pages {
	return &pages{name: name, c: s.c.NewPageBlobClient(name), pacer: azstorage.NewPacer(s.limits, s.slots)}
}

// at gives the snapshot of the blob.
func (p *pages) at(snapshot string) (*pages, error) {
	c, err := p.c.WithSnapshot(snapshot)
	if err != nil {
		return nil, fmt.Errorf("snapshot %s of %s: %w", snapshot, p.name, azstorage.Clean(err))
	}
	return &pages{name: p.name + "@" + snapshot, c: c, pacer: p.pacer}, nil
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
	if errors.Is(err, azstorage.ErrCondition) {
		err = errors.Join(replica.ErrFenced, err)
	}
	return fmt.Errorf("%s %s: %w", what, p.name, err)
}

func sequence(word uint64) *sdk.SequenceNumberAccessConditions {
	return &sdk.SequenceNumberAccessConditions{IfSequenceNumberEqualTo: to.Ptr(int64(word))} //nolint:gosec // epochs are below 2^31
}

// put writes whole pages, 4 MiB at most.
func (p *pages) put(ctx context.Context, word uint64, off int64, data []byte) (azstorage.Tag, error) {
	n := int64(len(data))
	if err := whole(off, n); err != nil {
		return "", fmt.Errorf("write %s: %w", p.name, err)
	}
	if n > maxPut {
		return "", fmt.Errorf("write %s: %d bytes, one request takes %d", p.name, n, maxPut)
	}
	r, err := p.c.UploadPages(p.pacer.With(ctx, len(data)), streaming.NopCloser(bytes.NewReader(data)), blob.HTTPRange{Offset: off, Count: n},
		&sdk.UploadPagesOptions{TransactionalValidation: azstorage.CRC64(data), SequenceNumberAccessConditions: sequence(word)})
	if err != nil {
		return "", p.fenced("write", err)
	}
	return azstorage.Tag(*r.ETag), nil
}

// clear makes whole pages empty.
func (p *pages) clear(ctx context.Context, word uint64, off, n int64) (azstorage.Tag, error) {
	if err := whole(off, n); err != nil {
		return "", fmt.Errorf("clear %s: %w", p.name, err)
	}
	r, err := p.c.ClearPages(p.pacer.With(ctx, 0), blob.HTTPRange{Offset: off, Count: n}, &sdk.ClearPagesOptions{SequenceNumberAccessConditions: sequence(word)})
	if err != nil {
		return "", p.fenced("clear", err)
	}
	return azstorage.Tag(*r.ETag), nil
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
	r, err := p.c.UpdateSequenceNumber(p.pacer.With(ctx, 0), &sdk.UpdateSequenceNumberOptions{
		ActionType: to.Ptr(sdk.SequenceNumberActionTypeMax), SequenceNumber: to.Ptr(int64(word)), //nolint:gosec // epochs are below 2^31
	})
	if err = azstorage.Clean(err); errors.Is(err, azstorage.ErrNotFound) {
		return fmt.Errorf("%s is gone: %w", p.name, replica.ErrCorrupt)
	}
	if err != nil {
		return fmt.Errorf("raise the sequence number of %s: %w", p.name, err)
	}
	if r.BlobSequenceNumber != nil && *r.BlobSequenceNumber != int64(word) { //nolint:gosec // epochs are below 2^31
		return fmt.Errorf("%s is at %#x, ours is %#x: %w", p.name, *r.BlobSequenceNumber, word, replica.ErrFenced)
	}
	return nil
}

// make makes the blob, empty, of a disk that has none; what an earlier, unfinished
// attempt left is deleted.
func (p *pages) make(ctx context.Context, word uint64, bytes int64) error {
	o := &sdk.CreateOptions{
		SequenceNumber: to.Ptr(int64(word)), Metadata: map[string]*string{metaSize: to.Ptr("0")}, //nolint:gosec // epochs are below 2^31
		AccessConditions: azstorage.If{Absent: true}.Conditions(),
	}
	_, err := p.c.Create(ctx, bytes, o)
	if err = azstorage.Clean(err); errors.Is(err, azstorage.ErrCondition) {
		_, err = p.c.Delete(ctx, &blob.DeleteOptions{DeleteSnapshots: to.Ptr(blob.DeleteSnapshotsOptionTypeInclude)})
		if err = azstorage.Clean(err); err == nil || errors.Is(err, azstorage.ErrNotFound) {
			_, err = p.c.Create(ctx, bytes, o)
		}
	}
	if err = azstorage.Clean(err); err != nil {
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
func (p *pages) resize(ctx context.Context, tag azstorage.Tag, length int64) error {
	_, err := p.c.Resize(p.pacer.With(ctx, 0), length, &sdk.ResizeOptions{AccessConditions: azstorage.If{Is: tag}.Conditions()})
	return p.fenced("resize", err)
}

func (p *pages) setSize(ctx context.Context, tag azstorage.Tag, size int64) error {
	_, err := p.c.SetMetadata(p.pacer.With(ctx, 0), map[string]*string{metaSize: to.Ptr(strconv.FormatInt(size, 10))},
		&blob.SetMetadataOptions{AccessConditions: azstorage.If{Is: tag}.Conditions()})
	return p.fenced("note the disk's size of", err)
}
