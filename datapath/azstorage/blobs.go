package azstorage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
)

// Tag is a version of a blob; empty: of none, the blob is not there.
type Tag string

// If makes a request conditional.
type If struct {
	Is     Tag // the blob is this version
	Absent bool
	Lease  string // of which the blob must have the one with this id
}

// Conditions gives them as the SDK wants them.
func (i If) Conditions() *blob.AccessConditions {
	if i == (If{}) {
		return nil
	}
	c := &blob.AccessConditions{}
	if i.Lease != "" {
		c.LeaseAccessConditions = &blob.LeaseAccessConditions{LeaseID: &i.Lease}
	}
	switch {
	case i.Absent:
		c.ModifiedAccessConditions = &blob.ModifiedAccessConditions{IfNoneMatch: to.Ptr(azcore.ETagAny)}
	case i.Is != "":
		c.ModifiedAccessConditions = &blob.ModifiedAccessConditions{IfMatch: to.Ptr(azcore.ETag(i.Is))}
	}
	return c
}

// Make makes the container when it is absent.
func (c *Container) Make(ctx context.Context) error {
	_, err := c.Create(ctx, nil)
	if err = Clean(err); err != nil && !HasCode(err, bloberror.ContainerAlreadyExists) {
		return fmt.Errorf("make container %s: %w", c.name, err)
	}
	return nil
}

// Check finds out whether the container is there and may be read, by looking for one blob:
// a SAS may not ask for a container's properties.
func (c *Container) Check(ctx context.Context) error {
	_, err := c.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{MaxResults: to.Ptr[int32](1)}).NextPage(ctx)
	return Clean(err)
}

// Get reads a small blob whole; one larger than limit is an error.
func (c *Container) Get(ctx context.Context, name string, limit int64) ([]byte, Tag, error) {
	b, tag, err := c.get(ctx, name, limit, nil)
	return b, tag, Clean(err)
}

// Changed reads the blob unless it is still the version; then it gives nil.
func (c *Container) Changed(ctx context.Context, name string, limit int64, is Tag) ([]byte, Tag, error) {
	o := &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfNoneMatch: to.Ptr(azcore.ETag(is))}}
	b, tag, err := c.get(ctx, name, limit, o)
	if tag == "" && err == nil { // the SDK takes "not modified" for success
		return nil, is, nil
	}
	return b, tag, Clean(err)
}

func (c *Container) get(ctx context.Context, name string, limit int64, cond *blob.AccessConditions) ([]byte, Tag, error) {
	r, err := c.NewBlobClient(name).DownloadStream(ctx, &blob.DownloadStreamOptions{AccessConditions: cond})
	if err != nil {
		return nil, "", err
	}
	if r.ETag == nil {
		return nil, "", nil
	}
	body := r.NewRetryReader(ctx, &blob.RetryReaderOptions{MaxRetries: 3})
	defer func() { _ = body.Close() }()
	b, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err != nil {
		return nil, "", err
	}
	if int64(len(b)) > limit {
		return nil, "", fmt.Errorf("blob %s has more than %d bytes", name, limit)
	}
	return b, Tag(*r.ETag), nil
}

// Put replaces a small blob whole, if the condition holds.
func (c *Container) Put(ctx context.Context, name string, content []byte, cond If, metadata map[string]*string) (Tag, error) {
	r, err := c.NewBlockBlobClient(name).Upload(ctx, streaming.NopCloser(bytes.NewReader(content)), &blockblob.UploadOptions{
		AccessConditions: cond.Conditions(), Metadata: metadata, TransactionalValidation: CRC64(content),
	})
	if err != nil {
		return "", Clean(err)
	}
	return Tag(*r.ETag), nil
}

// Remove deletes a blob; an absent one is no error.
func (c *Container) Remove(ctx context.Context, name string, cond If) error {
	_, err := c.NewBlobClient(name).Delete(ctx, &blob.DeleteOptions{AccessConditions: cond.Conditions()})
	if err = Clean(err); errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// Each calls f for every blob below the prefix, in the order of names, and for its
// snapshots, if they are asked for, before it or behind it.
func (c *Container) Each(ctx context.Context, prefix string, include container.ListBlobsInclude, f func(*container.BlobItem) error) error {
	pager := c.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Prefix: &prefix, Include: include})
	for pager.More() {
		page, err := pager.NextPage(ctx)
		if err != nil {
			return Clean(err)
		}
		for _, item := range page.Segment.BlobItems {
			if err := f(item); err != nil {
				return err
			}
		}
	}
	return nil
}

// Meta finds metadata by its name; servers differ in the case of names.
func Meta(m map[string]*string, name string) string {
	for k, v := range m {
		if strings.EqualFold(k, name) && v != nil {
			return *v
		}
	}
	return ""
}
