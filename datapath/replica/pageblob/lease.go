package pageblob

import (
	"context"
	"errors"
	"fmt"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/lease"
	"github.com/google/uuid"

	"drover/datapath/azstorage"
	"drover/datapath/failpoint"
	"drover/datapath/replica"
)

// The lease of a page blob keeps people and tools from overwriting or deleting it by mistake, and
// shows that it is in use. It fences nobody: that is the word's business alone (FORMAT.md).

const (
	forever = -1 // seconds of a lease
	// maxTakes is how often a lease is taken for one request before it is left to whoever wants it so much.
	maxTakes = 5
)

var leaseSpace = uuid.MustParse("2b1a6a0e-8a0f-5c0d-9d5e-6c6561736573")

// leaseID is derived from the blob and the owner's epoch: an owner that is started again knows
// its lease, and nothing is to be remembered or renewed.
func leaseID(blob string, word uint64) string {
	return uuid.NewSHA1(leaseSpace, fmt.Appendf(nil, "%s\x00%d", blob, word>>32)).String()
}

// leased does a request that changes the blob, with the id of the lease that goes with the word. Refused for want of
// that lease it has changed nothing: the lease is taken, as long as the word is ours, and the request done again.
func (p *pages) leased(ctx context.Context, word uint64, request func(lease string) error) error {
	id := leaseID(p.name, word)
	for tries := 0; ; tries++ {
		err := request(id)
		if !lacksLease(err) || tries == maxTakes {
			return err
		}
		if err := p.take(ctx, word); err != nil {
			return err
		}
	}
}

// lacksLease reports whether a request was refused because the blob has another lease than it names, or none.
func lacksLease(err error) bool {
	return azstorage.HasCode(err, bloberror.LeaseIDMismatchWithBlobOperation, bloberror.LeaseNotPresentWithBlobOperation, bloberror.LeaseLost, bloberror.LeaseIDMissing)
}

// take takes the lease, for one request after the other, so that none breaks what another has just taken.
func (p *pages) take(ctx context.Context, word uint64) error {
	p.leasing.Lock()
	defer p.leasing.Unlock()
	var err error
	for range maxTakes {
		if err = p.takeOnce(ctx, word); !errors.Is(err, errLeaseRaced) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("take the lease of %s: %w", p.name, err)
	}
	return p.store.step(failpoint.LeaseTaken)
}

// errLeaseRaced: another changed the blob or took the lease since we looked.
var errLeaseRaced = errors.New("others take it, too: try again")

// takeOnce looks at the word first: a newer owner's lease is not touched. It could come between
// the look and the breaking, so that asks for the version that was looked at.
func (p *pages) takeOnce(ctx context.Context, word uint64) error {
	is, err := p.props(ctx)
	if err == nil && is.word > word {
		err = p.behind(is.word, word)
	}
	if err != nil {
		return err
	}
	if err = p.acquire(ctx, word); !errors.Is(err, errLeaseRaced) {
		return err
	}
	if err = p.breakLease(ctx, azstorage.If{Is: is.tag}); errors.Is(err, azstorage.ErrCondition) {
		return errLeaseRaced
	}
	if err != nil {
		return err
	}
	return p.acquire(ctx, word)
}

// acquire succeeds where there is no lease, and where it is ours already.
func (p *pages) acquire(ctx context.Context, word uint64) error {
	c, err := lease.NewBlobClient(p.c, &lease.BlobClientOptions{LeaseID: to.Ptr(leaseID(p.name, word))})
	if err != nil {
		return err
	}
	_, err = c.AcquireLease(p.pacer.With(ctx, 0), forever, nil)
	if err = azstorage.Clean(err); azstorage.HasCode(err, bloberror.LeaseAlreadyPresent, bloberror.LeaseIsBreakingAndCannotBeAcquired) {
		return errLeaseRaced
	}
	return err
}

// breakLease ends whatever lease the blob has, at once. That it has none is no error.
func (p *pages) breakLease(ctx context.Context, cond azstorage.If) error {
	c, err := lease.NewBlobClient(p.c, nil)
	if err != nil {
		return err
	}
	o := &lease.BlobBreakOptions{BreakPeriod: to.Ptr[int32](0)}
	if x := cond.Conditions(); x != nil {
		o.ModifiedAccessConditions = x.ModifiedAccessConditions
	}
	_, err = c.BreakLease(p.pacer.With(ctx, 0), o)
	if err = azstorage.Clean(err); err != nil && !azstorage.HasCode(err, bloberror.LeaseNotPresentWithLeaseOperation, bloberror.LeaseAlreadyBroken) {
		return err
	}
	return p.store.step(failpoint.LeaseBroken)
}

// behind says that the blob is another owner's.
func (p *pages) behind(is, word uint64) error {
	return fmt.Errorf("%s is at %#x, ours is %#x: %w", p.name, is, word, replica.ErrFenced)
}
