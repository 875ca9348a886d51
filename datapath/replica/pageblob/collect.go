package pageblob

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"drover/datapath/azstorage"
)

// collect deletes what earlier sessions left: snapshots and manifests of points that
// were never committed, or whose deletion broke off, and blobs of disks that nothing
// needs. Only what is older than this session's state is deleted, so that a writer
// that sleeps in here for a day and wakes up harms nobody.
func (w *Writer) collect(ctx context.Context) error {
	keep := w.listed()
	var gone []*item
	err := w.m.store.c.Each(ctx, w.m.prefix(), listAll, func(b *item) error {
		if !keep[itemName(b)] && w.older(b) {
			gone = append(gone, b)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("look for what earlier writers left of %s: %w", w.m.id, err)
	}
	for _, b := range gone {
		if err := w.drop(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

type item = container.BlobItem

var listAll = container.ListBlobsInclude{Snapshots: true, Metadata: true}

// itemName is "blob" or "blob@snapshot".
func itemName(b *item) string {
	if isSnapshot(b) {
		return *b.Name + "@" + *b.Snapshot
	}
	return *b.Name
}

func isSnapshot(b *item) bool { return b.Snapshot != nil && *b.Snapshot != "" }

// listed is what the state needs below the machine's prefix.
func (w *Writer) listed() map[string]bool {
	keep := map[string]bool{}
	for _, d := range w.mf.disks() {
		keep[w.m.diskName(d.ID)], keep[w.m.sumsName(d.ID)] = true, true
	}
	for _, b := range w.mf.Snapshots {
		keep[b.Manifest] = true
		for id, s := range b.Disks {
			keep[w.m.diskName(id)+"@"+s.Disk], keep[w.m.sumsName(id)+"@"+s.Sums] = true, true
		}
	}
	return keep
}

// older reports whether the blob or snapshot was made under an earlier fence word, or
// by this writer before the present state.
func (w *Writer) older(b *item) bool {
	word := w.mf.word()
	switch {
	case isSnapshot(b):
		made, err := strconv.ParseUint(azstorage.Meta(b.Metadata, metaWord), 16, 64)
		return err == nil && made < word
	case strings.HasSuffix(*b.Name, pointSuffix):
		_, hex, _ := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(*b.Name, w.m.prefix()), pointSuffix), "-")
		made, err := strconv.ParseUint(hex, 16, 64)
		return err == nil && made < word
	case b.Properties != nil && b.Properties.BlobSequenceNumber != nil:
		return uint64(*b.Properties.BlobSequenceNumber) <= word //nolint:gosec // never negative
	}
	return false
}

// drop deletes one; a page blob only as it was listed.
func (w *Writer) drop(ctx context.Context, b *item) error {
	if isSnapshot(b) {
		return w.m.store.pages(*b.Name).dropSnapshot(ctx, *b.Snapshot)
	}
	var cond azstorage.If
	if b.Properties != nil && b.Properties.ETag != nil {
		cond.Is = azstorage.Tag(`"` + strings.Trim(string(*b.Properties.ETag), `"`) + `"`) // lists have it without quotes
	}
	err := w.m.store.pages(*b.Name).remove(ctx, cond)
	if errors.Is(err, azstorage.ErrCondition) {
		return nil // another has changed it meanwhile
	}
	return err
}
