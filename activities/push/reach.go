package push

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"

	"drover/workflows/api"
)

// reach is a way into a guest. Paths and commands are ours: no part of them comes from
// outside.
type reach interface {
	// exists reports whether there is such a file or directory.
	exists(ctx context.Context, file string) (bool, error)
	// digest gives the SHA-256 of what a file holds, in hex; fs.ErrNotExist if there is none.
	digest(ctx context.Context, file string) (string, error)
	// place makes a file of so many bytes in one step, when what arrived has the digest. At
	// no moment can more read it than the mode says.
	place(ctx context.Context, file string, content io.Reader, size int64, mode fs.FileMode, digest string) error
	// remove removes a file; fs.ErrNotExist if there is none.
	remove(ctx context.Context, file string) error
	// free gives the bytes that are free where the directory lies.
	free(ctx context.Context, dir string) (int64, error)
	// run runs a command, at most for runTimeout, and gives what it printed.
	run(ctx context.Context, command string) (stdout string, err error)
}

// guest is one that a push works in.
type guest struct {
	reach
	a   *Activities
	in  api.PushInput
	out api.PushResult
}

func (g *guest) did(step, format string, args ...any) {
	g.out.Steps = append(g.out.Steps, api.PushStep{Name: step, Result: fmt.Sprintf(format, args...)})
}

// work does what was asked for.
func (g *guest) work(ctx context.Context) error {
	if g.in.Remove {
		return g.uninstall(ctx)
	}
	return g.install(ctx)
}

// content of a file that is to be in the guest.
type content struct {
	io.ReadSeeker
	size   int64
	digest string
}

func contentOf(b []byte) content {
	sum := sha256.Sum256(b)
	return content{bytes.NewReader(b), int64(len(b)), hex.EncodeToString(sum[:])}
}

func contentOfFile(f *os.File) (content, error) {
	sum := sha256.New()
	size, err := io.Copy(sum, f)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	return content{f, size, hex.EncodeToString(sum.Sum(nil))}, err
}

// put writes a file, if it is not as it should be.
func (g *guest) put(ctx context.Context, file string, c content, mode fs.FileMode) (changed bool, err error) {
	if have, err := g.digest(ctx, file); err == nil && have == c.digest {
		return false, nil
	}
	if err := g.place(ctx, file, c, c.size, mode, c.digest); err != nil {
		return false, failed(api.CodePush, err, "push to %s: write %s", g.in.Name, file)
	}
	return true, nil
}

// wrongDigest: what arrived is not what was sent.
func wrongDigest(have, want string) error {
	return fmt.Errorf("what was written has the SHA-256 %s, want %s", have, want)
}
