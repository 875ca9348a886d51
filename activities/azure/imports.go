package azure

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"
	"golang.org/x/sync/errgroup"

	"drover/activities/target"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/replica/pageblob/vhd"
	"drover/workflows/api"
)

const (
	maxCopies = 3 // tries of one copy
	// window is what is filled before it is noted how far it is.
	window = 64 << 20
)

// snapshot is a disk at a point, in the store.
type snapshot struct {
	url  string
	size int64 // without the footer
}

// Imports says whether disks are made from the store's snapshots.
func (c *Cloud) Imports() bool { return c.Snapshots != nil }

// ImportDisk makes the disk from the point's snapshot, in the way that is configured.
func (c *Cloud) ImportDisk(ctx context.Context, ref target.Ref, spec target.DiskSpec, machine ident.MachineID, point replica.Point) (target.Disk, error) {
	var from snapshot
	var err error
	if from.url, from.size, err = c.Snapshots.SnapshotURL(ctx, machine, point, spec.ID); err != nil {
		return target.Disk{}, err
	}
	if from.size != vhd.Size(spec.Size) {
		return target.Disk{}, &target.Fault{Code: api.CodeReplicaDamaged, Text: fmt.Sprintf(
			"disk %d has %d bytes at recovery point %d, and its blob %d", spec.Number, spec.Size, point.ID, from.size)}
	}
	if c.Way == WayUpload {
		return c.fillFromURL(ctx, ref, spec, from)
	}
	return c.importCopy(ctx, ref, spec, from)
}

// importCopy copies the snapshot to a blob and imports that: Azure imports no
// snapshots. The blob goes as soon as the disk is there.
func (c *Cloud) importCopy(ctx context.Context, ref target.Ref, spec target.DiskSpec, from snapshot) (target.Disk, error) {
	files, err := c.copies()
	if err != nil {
		return target.Disk{}, err
	}
	address := files.URL() + "/" + copyName(ref, spec.Number)
	have, err := c.settledDisk(ctx, diskName(ref, spec.Number))
	if err != nil || !filled(have) { // the copy is needed; an error comes again below
		if err := c.copySnapshot(ctx, ref, spec, from, address); err != nil {
			return target.Disk{}, err
		}
	}
	d, err := c.disk(ctx, ref, spec, &armcompute.CreationData{
		CreateOption: to.Ptr(armcompute.DiskCreateOptionImport), SourceURI: &address, StorageAccountID: &c.Account.ID,
	})
	if err != nil {
		return target.Disk{}, err
	}
	if !filled(d) {
		return target.Disk{}, &target.Fault{Code: api.CodeTarget, Text: fmt.Sprintf("make disk %s: the import failed", value(d.Name))}
	}
	if err := c.deleteCopy(ctx, files, copyName(ref, spec.Number)); err != nil {
		return target.Disk{}, err
	}
	return describe(d, spec), nil
}

// copies opens the container for copies in the account of the snapshots.
func (c *Cloud) copies() (*container.Client, error) {
	files, err := container.NewClient(strings.TrimRight(c.Account.Endpoint, "/")+"/"+c.Copies, c.Credential, &container.ClientOptions{ClientOptions: c.options()})
	if err != nil {
		return nil, fault(err, "open the container %s", c.Copies)
	}
	return files, nil
}

// copySnapshot makes sure that the copy is there. The copy is done by Azure, and
// goes on whatever becomes of us.
func (c *Cloud) copySnapshot(ctx context.Context, ref target.Ref, spec target.DiskSpec, from snapshot, address string) error {
	b, err := pageblob.NewClient(address, c.Credential, &pageblob.ClientOptions{ClientOptions: c.options()})
	if err != nil {
		return fault(err, "open the copy of disk %d", spec.Number)
	}
	for tries := 0; ; {
		p, err := b.GetProperties(ctx, nil)
		status := value(p.CopyStatus)
		switch {
		case err == nil && status == blob.CopyStatusTypeSuccess && sameSource(value(p.CopySource), from.url):
			return nil
		case err == nil && status == blob.CopyStatusTypePending:
			target.JournalOf(ctx).Fill("copy of "+diskName(ref, spec.Number), 0, from.size)
			if err := pause(ctx, c.Poll); err != nil {
				return err
			}
			continue
		case err != nil && !notFound(err):
			return fault(err, "look at the copy of disk %d", spec.Number)
		}
		if tries++; tries > maxCopies {
			return &target.Fault{Code: api.CodeTarget, Text: fmt.Sprintf("copy disk %d of %s: Azure gave the copy up %d times (%s)", spec.Number, ref.Name, maxCopies, status)}
		}
		if _, err := b.StartCopyFromURL(ctx, from.url, &blob.StartCopyFromURLOptions{Metadata: copyTags(spec)}); err != nil {
			return fault(err, "copy disk %d of %s from its snapshot", spec.Number, ref.Name)
		}
	}
}

// sameSource: Azure may write the address in another way; the snapshot is what counts.
func sameSource(have, want string) bool {
	a, err1 := url.Parse(have)
	b, err2 := url.Parse(want)
	return err1 == nil && err2 == nil && a.Query().Get("snapshot") == b.Query().Get("snapshot")
}

// copyTags: names of metadata are identifiers.
func copyTags(spec target.DiskSpec) map[string]*string {
	out := map[string]*string{}
	for _, key := range []string{target.TagRun, target.TagMachine} {
		out[strings.ReplaceAll(key, "-", "_")] = to.Ptr(spec.Tags[key])
	}
	return out
}

func (c *Cloud) deleteCopy(ctx context.Context, files *container.Client, n string) error {
	_, err := files.NewBlobClient(n).Delete(ctx, nil)
	if notFound(err) {
		return nil
	}
	return fault(err, "delete the copy %s", n)
}

// fillFromURL makes an empty disk and has Azure fill it from the snapshot.
func (c *Cloud) fillFromURL(ctx context.Context, ref target.Ref, spec target.DiskSpec, from snapshot) (target.Disk, error) {
	made, err := c.emptyDisk(ctx, ref, spec)
	disk := describe(made, spec)
	if err != nil || disk.Filled {
		return disk, err
	}
	source, err := pageblob.NewClient(from.url, c.Credential, &pageblob.ClientOptions{ClientOptions: c.options()})
	if err != nil {
		return disk, fault(err, "open the snapshot of disk %d", spec.Number)
	}
	to, err := c.openUpload(ctx, disk.Name)
	if err != nil {
		return disk, err
	}
	journal, total, done := target.JournalOf(ctx), from.size, int64(0)
	if value(made.Properties.DiskState) == armcompute.DiskStateActiveUpload { // not made anew
		done = journal.Filled(disk.Name)
	}
	for at := done; at < total; at = min(at+window, total) {
		if err := c.fillWindow(ctx, to, source, from.url, at, min(window, total-at)); err != nil {
			return disk, fault(err, "fill disk %s from its snapshot at %d", disk.Name, at)
		}
		journal.Fill(disk.Name, min(at+window, total), total)
	}
	if err := putFooter(ctx, to, spec.ID, rounded(spec.Size)); err != nil {
		return disk, fault(err, "write the footer of disk %s", disk.Name)
	}
	if err := c.seal(ctx, disk.Name); err != nil {
		return disk, err
	}
	disk.Filled = true
	return disk, nil
}

// fillWindow fills a part of a disk with what the snapshot has there. Whoever has the disk
// in Azure is not us: it reads the snapshot by an address that we sign.
func (c *Cloud) fillWindow(ctx context.Context, to, source *pageblob.Client, address string, at, length int64) error {
	signed, err := c.delegate.Readable(ctx, address)
	if err != nil {
		return err
	}
	group, inner := errgroup.WithContext(ctx)
	group.SetLimit(puts)
	// Options that are not nil: azblob's pager fails on its second page without.
	pager := source.NewGetPageRangesPager(&pageblob.GetPageRangesOptions{Range: blob.HTTPRange{Offset: at, Count: length}})
	for pager.More() {
		p, err := pager.NextPage(inner)
		if err != nil {
			_ = group.Wait()
			return err
		}
		for _, r := range p.PageRange {
			end := min(value(r.End)+1, at+length)
			for from := max(value(r.Start), at); from < end; from += maxPut {
				count := min(maxPut, end-from)
				group.Go(func() error {
					_, err := to.UploadPagesFromURL(inner, signed, from, from, count, nil)
					return err
				})
			}
		}
	}
	return group.Wait()
}

// deleteCopies deletes all copies that were made for the ref.
func (c *Cloud) deleteCopies(ctx context.Context, ref target.Ref) error {
	if c.Snapshots == nil || c.Way != WayImport {
		return nil
	}
	files, err := c.copies()
	if err != nil {
		return err
	}
	for pager := files.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Prefix: to.Ptr(hash(ref) + "/")}); pager.More(); {
		page, err := pager.NextPage(ctx)
		if notFound(err) {
			return nil // no container: no copies
		}
		if err != nil {
			return fault(err, "list the copies of %s", ref.Name)
		}
		for _, b := range page.Segment.BlobItems {
			if err := c.deleteCopy(ctx, files, value(b.Name)); err != nil {
				return err
			}
		}
	}
	return nil
}
