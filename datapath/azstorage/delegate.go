package azstorage

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/service"
	"golang.org/x/sync/semaphore"
)

const (
	readFor   = time.Hour        // an address that is signed
	keyFor    = 6 * time.Hour    // a key; Azure gives them for seven days at most
	clockSkew = 15 * time.Minute // the account's clock may be behind by as much
)

// Delegate signs addresses of blobs, so that others may read them, in the name of an
// identity: with a key that the account gives the identity for some hours (a user
// delegation SAS). No key of the account is involved. It is safe for concurrent use.
type Delegate struct {
	account *service.Client
	now     func() time.Time

	turn  *semaphore.Weighted // one at a time asks
	key   *service.UserDelegationCredential
	until time.Time
}

// NewDelegate is for the blob service of an account, by its URL. Nothing is asked yet.
func NewDelegate(endpoint string, cred azcore.TokenCredential, o azcore.ClientOptions) (*Delegate, error) {
	c, err := service.NewClient(strings.TrimSuffix(endpoint, "/")+"/", cred, &service.ClientOptions{ClientOptions: o})
	if err != nil {
		return nil, fmt.Errorf("azure storage %s: %w", endpoint, Clean(err))
	}
	return &Delegate{account: c, now: time.Now, turn: semaphore.NewWeighted(1)}, nil
}

// Check finds out whether the account gives the identity a key. Errors are the SDK's.
func (d *Delegate) Check(ctx context.Context) error {
	_, err := d.credential(ctx)
	return err
}

// Readable gives the address of a blob, or of a snapshot of one, signed: whoever has it may
// read that for an hour, over https, and do nothing else. It is a secret. Errors are the
// SDK's.
func (d *Delegate) Readable(ctx context.Context, address string) (string, error) {
	at, err := blob.ParseURL(address)
	if err != nil {
		return "", err
	}
	v := sas.BlobSignatureValues{
		Protocol: sas.ProtocolHTTPS, ExpiryTime: d.now().Add(readFor).UTC(), Permissions: (&sas.BlobPermissions{Read: true}).String(),
		ContainerName: at.ContainerName, BlobName: at.BlobName,
	}
	if at.Snapshot != "" {
		if v.SnapshotTime, err = time.Parse(blob.SnapshotTimeFormat, at.Snapshot); err != nil {
			return "", fmt.Errorf("the snapshot's time: %w", err)
		}
	}
	key, err := d.credential(ctx)
	if err != nil {
		return "", err
	}
	if at.SAS, err = v.SignWithUserDelegation(key); err != nil {
		return "", err
	}
	return at.String(), nil
}

// credential gives a key that is good for longer than what is signed with it.
func (d *Delegate) credential(ctx context.Context) (*service.UserDelegationCredential, error) {
	if err := d.turn.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer d.turn.Release(1)
	now := d.now().UTC()
	if d.key != nil && now.Add(readFor+clockSkew).Before(d.until) {
		return d.key, nil
	}
	until := now.Add(keyFor)
	key, err := d.account.GetUserDelegationCredential(ctx, service.KeyInfo{
		Start: to.Ptr(now.Add(-clockSkew).Format(sas.TimeFormat)), Expiry: to.Ptr(until.Format(sas.TimeFormat)),
	}, nil)
	if err != nil {
		return nil, err
	}
	d.key, d.until = key, until
	return key, nil
}
