package compat

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"
	"github.com/stretchr/testify/require"

	"drover/datapath/azstorage"
)

// savedBlob is a blob of a container in a sample, with its snapshots, oldest first. The
// content of each is a file.
type savedBlob struct {
	Name     string            `json:"name"`
	Page     bool              `json:"page,omitempty"` // else a block blob
	Sequence int64             `json:"sequence,omitempty"`
	Metadata map[string]string `json:"metadata,omitempty"`
	Content  string            `json:"content"`

	Snapshots []savedSnapshot `json:"snapshots,omitempty"`
}

type savedSnapshot struct {
	ID       string            `json:"id"`
	Metadata map[string]string `json:"metadata,omitempty"`
	Content  string            `json:"content"`
}

const blobsFile = "blobs.json"

// saveContainer writes all of a container into the directory.
func saveContainer(t *testing.T, c *azstorage.Container, dir string) {
	t.Helper()
	var blobs []savedBlob
	snapshots := map[string][]savedSnapshot{} // by blob: before it or behind it, servers differ
	files := 0
	content := func(b *blob.Client) string {
		r, err := b.DownloadStream(t.Context(), nil)
		require.NoError(t, err)
		all, err := io.ReadAll(r.Body)
		require.NoError(t, err)
		require.NoError(t, r.Body.Close())
		files++
		name := fmt.Sprintf("%04d", files)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), all, 0o600))
		return name
	}
	require.NoError(t, os.MkdirAll(dir, 0o750))
	err := c.Each(t.Context(), "", container.ListBlobsInclude{Snapshots: true, Metadata: true}, func(b *container.BlobItem) error {
		client := c.NewBlobClient(*b.Name)
		if b.Snapshot != nil && *b.Snapshot != "" {
			at, err := client.WithSnapshot(*b.Snapshot)
			require.NoError(t, err)
			snapshots[*b.Name] = append(snapshots[*b.Name], savedSnapshot{*b.Snapshot, plainMeta(b.Metadata), content(at)})
			return nil
		}
		p, err := client.GetProperties(t.Context(), nil)
		require.NoError(t, err)
		s := savedBlob{Name: *b.Name, Page: *p.BlobType == blob.BlobTypePageBlob, Metadata: plainMeta(b.Metadata), Content: content(client)}
		if s.Page {
			s.Sequence = *p.BlobSequenceNumber
		}
		blobs = append(blobs, s)
		return nil
	})
	require.NoError(t, err)
	for i := range blobs {
		blobs[i].Snapshots = snapshots[blobs[i].Name]
	}
	text, err := json.MarshalIndent(blobs, "", "  ")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, blobsFile), text, 0o600))
}

// snapshotNames are where a manifest names the snapshots of a disk and of its checksums.
var snapshotNames = regexp.MustCompile(`"([^"]+)":\s*\{\s*"disk":\s*"([^"]+)",\s*"sums":\s*"([^"]+)"\s*\}`)

// loadContainer makes the blobs of a sample in an empty container. Snapshots get new names
// there, so those in manifests are replaced.
func loadContainer(t *testing.T, c *azstorage.Container, dir string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, blobsFile))
	require.NoError(t, err)
	var blobs []savedBlob
	require.NoError(t, json.Unmarshal(text, &blobs))
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		return b
	}
	renamed := map[string]string{} // by the blob's name within its machine, and the snapshot's
	for _, s := range blobs {
		if !s.Page {
			continue
		}
		last := read(s.Content)
		p := c.NewPageBlobClient(s.Name)
		_, err := p.Create(t.Context(), int64(len(last)), &pageblob.CreateOptions{SequenceNumber: &s.Sequence, Metadata: sdkMeta(s.Metadata)})
		require.NoError(t, err)
		for _, at := range s.Snapshots {
			fill(t, p, read(at.Content))
			made, err := p.CreateSnapshot(t.Context(), &blob.CreateSnapshotOptions{Metadata: sdkMeta(at.Metadata)})
			require.NoError(t, err)
			renamed[path.Base(s.Name)+at.ID] = *made.Snapshot
			time.Sleep(2 * time.Millisecond) // the emulator names two of one millisecond alike
		}
		fill(t, p, last)
	}
	for _, s := range blobs {
		if s.Page {
			continue
		}
		content := snapshotNames.ReplaceAllFunc(read(s.Content), func(b []byte) []byte {
			m := snapshotNames.FindSubmatch(b)
			return fmt.Appendf(nil, `"%s":{"disk":"%s","sums":"%s"}`, m[1], renamed[string(m[1])+".vhd"+string(m[2])], renamed[string(m[1])+".sums"+string(m[3])])
		})
		_, err := c.Put(t.Context(), s.Name, content, azstorage.If{}, sdkMeta(s.Metadata))
		require.NoError(t, err)
	}
}

// fill writes the content into the blob: zeros are no pages.
func fill(t *testing.T, p *pageblob.Client, content []byte) {
	t.Helper()
	_, err := p.ClearPages(t.Context(), blob.HTTPRange{Count: int64(len(content))}, nil)
	require.NoError(t, err)
	const piece = 64 << 10
	for at := 0; at < len(content); at += piece {
		part := content[at:min(at+piece, len(content))]
		if len(bytes.Trim(part, "\x00")) == 0 {
			continue
		}
		_, err := p.UploadPages(t.Context(), streaming.NopCloser(bytes.NewReader(part)), blob.HTTPRange{Offset: int64(at), Count: int64(len(part))}, nil)
		require.NoError(t, err)
	}
}

func plainMeta(m map[string]*string) map[string]string {
	out := map[string]string{}
	for k, v := range m {
		out[k] = *v
	}
	return out
}

func sdkMeta(m map[string]string) map[string]*string {
	out := map[string]*string{}
	for k, v := range m {
		out[k] = to.Ptr(v)
	}
	return out
}
