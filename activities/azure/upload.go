package azure

import (
	"bytes"
	"context"
	"fmt"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"
	"golang.org/x/sync/errgroup"

	"drover/activities/target"
	"drover/datapath/azstorage"
	"drover/datapath/ident"
	"drover/datapath/replica/pageblob/vhd"
)

const (
	maxPut   = 4 << 20 // of one request
	pageSize = 512
	// puts is how many requests are under way for one disk.
	puts = 8
)

// writer fills a disk from us: several requests at once, each of whole pages.
type writer struct {
	cloud *Cloud
	disk  string // its name in Azure
	id    ident.DiskID
	size  int64 // without the footer
	to    *pageblob.Client
	ctx   context.Context //nolint:containedctx // io.WriterAt has none
	group *errgroup.Group
}

// OpenDisk opens a disk that has no content yet. What an earlier try wrote is the
// same, for it came from the same recovery point.
func (c *Cloud) OpenDisk(ctx context.Context, ref target.Ref, disk target.Disk) (target.DiskWriter, error) {
	to, err := c.openUpload(ctx, disk.Name)
	if err != nil {
		return nil, err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(puts)
	return &writer{cloud: c, disk: disk.Name, id: disk.ID, size: rounded(disk.Size), to: to, ctx: ctx, group: group}, nil
}

func (c *Cloud) openUpload(ctx context.Context, n string) (*pageblob.Client, error) {
	address, err := c.grant(ctx, n)
	if err != nil {
		return nil, err
	}
	to, err := pageblob.NewClientWithNoCredential(address, &pageblob.ClientOptions{ClientOptions: c.options()})
	if err != nil {
		return nil, fault(err, "open disk %s for writing", n)
	}
	return to, nil
}

// WriteAt takes a copy and returns; an error comes with the next call, or Finish.
func (w *writer) WriteAt(p []byte, at int64) (int, error) {
	if at%pageSize != 0 || len(p)%pageSize != 0 || at+int64(len(p)) > w.size {
		return 0, fmt.Errorf("write %d bytes at %d of disk %s: want whole pages of %d bytes within %d", len(p), at, w.disk, pageSize, w.size)
	}
	if w.ctx.Err() != nil {
		return 0, w.group.Wait()
	}
	for rest := p; len(rest) > 0; {
		part := bytes.Clone(rest[:min(len(rest), maxPut)])
		from := at
		w.group.Go(func() error { return w.put(part, from) })
		rest, at = rest[len(part):], at+int64(len(part))
	}
	return len(p), nil
}

func (w *writer) put(part []byte, at int64) error {
	body := streaming.NopCloser(bytes.NewReader(part))
	_, err := w.to.UploadPages(w.ctx, body, blob.HTTPRange{Offset: at, Count: int64(len(part))},
		&pageblob.UploadPagesOptions{TransactionalValidation: azstorage.CRC64(part)})
	return fault(err, "write %d bytes at %d of disk %s", len(part), at, w.disk)
}

// Finish writes the footer and closes the disk for writing.
func (w *writer) Finish(ctx context.Context) error {
	if err := w.group.Wait(); err != nil {
		return err
	}
	if err := putFooter(ctx, w.to, w.id, w.size); err != nil {
		return fault(err, "write the footer of disk %s", w.disk)
	}
	return w.cloud.seal(ctx, w.disk)
}

// putFooter writes what makes the disk's bytes a fixed VHD.
func putFooter(ctx context.Context, to *pageblob.Client, id ident.DiskID, size int64) error {
	f := vhd.Footer(size, id)
	_, err := to.UploadPages(ctx, streaming.NopCloser(bytes.NewReader(f[:])), blob.HTTPRange{Offset: size, Count: vhd.FooterSize},
		&pageblob.UploadPagesOptions{TransactionalValidation: azstorage.CRC64(f[:])})
	return err
}

// Close waits for what is under way.
func (w *writer) Close() error {
	_ = w.group.Wait() // WriteAt or Finish told it
	return nil
}
