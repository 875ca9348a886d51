package pageblob

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"drover/datapath/checksum"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/replica/pageblob/vhd"
)

// openDisk is a disk whose blobs the writer may write.
type openDisk struct {
	disk replica.Disk
	vhd  *pages
	sums *sumsBlob
	// cursor is what Leaves read by.
	cursor *sumsCursor
}

// makeDisk makes the blobs of a disk that has none.
func (m machine) makeDisk(ctx context.Context, word uint64, d replica.Disk) error {
	if err := m.store.pages(m.diskName(d.ID)).make(ctx, word, vhd.Size(d.Size)+vhd.FooterSize); err != nil {
		return err
	}
	return m.store.pages(m.sumsName(d.ID)).make(ctx, word, sumsLength(d.Size))
}

// raise gives all page blobs the state's fence word, and their leases to its owner: no
// older writer can write to them from then on.
func (m machine) raise(ctx context.Context, mf *manifest) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(m.store.parallel)
	for _, d := range mf.disks() {
		for _, name := range []string{m.diskName(d.ID), m.sumsName(d.ID)} {
			g.Go(func() error { return m.store.pages(name).raise(ctx, mf.word()) })
		}
	}
	return g.Wait()
}

// fitAll opens the machine's disks and gives their blobs the disks' sizes.
func (w *Writer) fitAll(ctx context.Context) error {
	open := map[ident.DiskID]*openDisk{}
	for _, d := range w.mf.State.Spec.Disks {
		o, err := w.fit(ctx, d)
		if err != nil {
			return fmt.Errorf("disk %s: %w", d.ID, err)
		}
		open[d.ID] = o
	}
	w.mu.Lock()
	w.open = open
	w.mu.Unlock()
	return nil
}

// fit opens a disk. Blobs of another size than the disk's are changed: first what is
// beyond the smaller of both sizes is cleared, the old footer with it; then come the
// length, the checksums of the blocks at both ends, whose length changes, and the new
// footer. The size is noted last: until then all of it is done again.
func (w *Writer) fit(ctx context.Context, d replica.Disk) (*openDisk, error) {
	s, word := w.m.store, w.mf.word()
	image, sums := s.pages(w.m.diskName(d.ID)), s.pages(w.m.sumsName(d.ID))
	is, err := image.props(ctx)
	if err != nil {
		return nil, err
	}
	if is.word != word {
		return nil, image.behind(is.word, word)
	}
	length := vhd.Size(d.Size) + vhd.FooterSize
	if is.size == d.Size && is.length == length {
		return w.opened(ctx, d, image, sums)
	}
	keep := min(is.size, d.Size)
	tag, err := image.clear(ctx, word, keep, is.length-keep)
	if err != nil {
		return nil, err
	}
	if err := image.resize(ctx, word, tag, length); err != nil {
		return nil, err
	}
	if err := w.fitSums(ctx, sums, keep, d); err != nil {
		return nil, err
	}
	o, err := w.opened(ctx, d, image, sums)
	if err != nil {
		return nil, err
	}
	if err := w.sumEnds(ctx, o, is.size); err != nil {
		return nil, err
	}
	footer := vhd.Footer(vhd.Size(d.Size), d.ID)
	if tag, err = image.put(ctx, word, vhd.Size(d.Size), footer[:]); err != nil {
		return nil, err
	}
	return o, image.setSize(ctx, word, tag, d.Size)
}

func (w *Writer) opened(ctx context.Context, d replica.Disk, image, sums *pages) (*openDisk, error) {
	o := &openDisk{disk: d, vhd: image}
	var err error
	if o.sums, err = openSums(ctx, sums, d.Size); err != nil {
		return nil, err
	}
	o.cursor = &sumsCursor{s: o.sums}
	return o, nil
}

// fitSums clears the sums past the block that the smaller size ends in, and gives the
// blob its length.
func (w *Writer) fitSums(ctx context.Context, p *pages, keep int64, d replica.Disk) error {
	is, err := p.props(ctx)
	if err != nil {
		return err
	}
	word, first := w.mf.word(), checksum.Blocks(keep)*sumSize
	page := first / pageBytes * pageBytes
	tag := is.tag
	if page < first && page < is.length { // a page that is kept in part
		b := make([]byte, pageBytes)
		if err := p.read(ctx, page, b); err != nil {
			return err
		}
		clear(b[first-page:])
		if tag, err = p.put(ctx, word, page, b); err != nil {
			return err
		}
		page += pageBytes
	}
	if page < is.length {
		if tag, err = p.clear(ctx, word, page, is.length-page); err != nil {
			return err
		}
	}
	if is.length == sumsLength(d.Size) {
		return nil
	}
	return p.resize(ctx, word, tag, sumsLength(d.Size))
}

// sumEnds computes the sums of the blocks in which the old and the new size end.
func (w *Writer) sumEnds(ctx context.Context, o *openDisk, old int64) error {
	for _, end := range []int64{old, o.disk.Size} {
		offset := end / checksum.BlockSize * checksum.BlockSize
		n := min(checksum.BlockSize, o.disk.Size-offset)
		if end%checksum.BlockSize == 0 || n <= 0 {
			continue
		}
		b := make([]byte, n)
		if err := o.vhd.read(ctx, offset, b); err != nil {
			return err
		}
		if err := w.setSum(ctx, o, offset/checksum.BlockSize, checksum.Sum(o.disk.Seed, offset, b)); err != nil {
			return err
		}
	}
	return nil
}

func (w *Writer) setSum(ctx context.Context, o *openDisk, block int64, sum uint64) error {
	sums, err := o.sums.load(ctx, block/segment)
	if err != nil {
		return err
	}
	if sums[block%segment] == sum {
		return nil
	}
	sums[block%segment] = sum
	return o.sums.store(ctx, w.mf.word(), block/segment, sums, block%segment, block%segment+1)
}

// takeDisks makes the list the machine's. Disks that left stay as retired ones
// while points need them.
func (w *Writer) takeDisks(ctx context.Context, mf *manifest, disks []replica.Disk) error {
	known := map[ident.DiskID]replica.Disk{}
	for _, d := range mf.disks() {
		known[d.ID] = d
	}
	list := make([]replica.Disk, 0, len(disks))
	for _, d := range disks {
		old, ok := known[d.ID]
		delete(known, d.ID)
		if ok {
			d.Seed = old.Seed
		} else {
			if d.Seed == 0 {
				d.Seed = replica.NewSeed()
			}
			if err := w.m.makeDisk(ctx, w.mf.word(), d); err != nil {
				return err
			}
		}
		list = append(list, d)
	}
	mf.State.Spec.Disks, mf.Retired = list, nil
	for id, d := range known {
		if mf.refers(id) {
			mf.Retired = append(mf.Retired, d)
		} else {
			delete(mf.Data, id)
		}
	}
	slices.SortFunc(mf.Retired, func(a, b replica.Disk) int { return slices.Compare(a.ID[:], b.ID[:]) })
	return nil
}
