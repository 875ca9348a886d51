package push

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"drover/activities/vsphere"
	"drover/workflows/api"
)

// workDir is a directory of ours beside a file's place, root's alone, in which the file
// arrives.
const workDir = ".drover-push"

const privateDir = 0o700

// byTools works in the guest by the guest operations of VMware Tools.
func (a *Activities) byTools(ctx context.Context, in api.PushInput, c credentials) (api.PushResult, error) {
	if c.Password == "" {
		return api.PushResult{}, failed(api.CodeInvalid, nil, "credentials file %s: VMware Tools take user: and password:, not key:", in.Credentials)
	}
	var g *guest
	err := a.config.InGuest(ctx, in.VM, vsphere.GuestUser{Name: c.User, Password: c.Password, From: in.Credentials}, func(v *vsphere.Guest) error {
		g = &guest{reach: &byTools{v}, a: a, in: in} // anew, if it is a second time
		g.did("connect", "VMware Tools, through vCenter %s, as %s", in.VM.VCenter, c.User)
		return g.work(ctx)
	})
	if err != nil {
		return api.PushResult{}, failed(api.CodePush, err, "push to %s by VMware Tools", in.Name)
	}
	return g.out, nil
}

// byTools reaches a guest by VMware Tools.
type byTools struct{ *vsphere.Guest }

func (r *byTools) exists(ctx context.Context, file string) (bool, error) { return r.Exists(ctx, file) }

// digest has the guest compute it: what crosses the hypervisor is slow.
func (r *byTools) digest(ctx context.Context, file string) (string, error) {
	there, err := r.Exists(ctx, file)
	if err != nil {
		return "", err
	}
	if !there {
		return "", fs.ErrNotExist
	}
	text, err := r.Run(ctx, "sha256sum "+file)
	if err != nil {
		return "", err
	}
	sum, _, found := strings.Cut(text, " ")
	if !found {
		return "", fmt.Errorf("sha256sum %s printed %q", file, text)
	}
	return sum, nil
}

// place has the file arrive in a directory of root's alone, compares it there, and moves it.
func (r *byTools) place(ctx context.Context, file string, content io.Reader, size int64, mode fs.FileMode, digest string) error {
	work := path.Join(path.Dir(file), workDir)
	if err := r.RemoveAll(ctx, work); err != nil && !errors.Is(err, fs.ErrNotExist) { // of an earlier try
		return err
	}
	err := r.arrive(ctx, work, file, content, size, mode, digest)
	if gone := r.RemoveAll(ctx, work); err == nil {
		err = gone
	}
	return err
}

func (r *byTools) arrive(ctx context.Context, work, file string, content io.Reader, size int64, mode fs.FileMode, digest string) error {
	if err := r.Mkdir(ctx, work, privateDir); err != nil {
		return err
	}
	part := path.Join(work, path.Base(file))
	if err := r.Upload(ctx, part, content, size, mode); err != nil {
		return err
	}
	have, err := r.digest(ctx, part)
	if err != nil {
		return err
	}
	if have != digest {
		return wrongDigest(have, digest)
	}
	return r.Move(ctx, part, file)
}

func (r *byTools) remove(ctx context.Context, file string) error { return r.Remove(ctx, file) }

func (r *byTools) free(ctx context.Context, dir string) (int64, error) {
	text, err := r.Run(ctx, "stat -f -c %a:%S "+dir)
	if err != nil {
		return 0, err
	}
	blocks, size, _ := strings.Cut(strings.TrimSpace(text), ":")
	n, err := strconv.ParseInt(blocks, 10, 64)
	each, err2 := strconv.ParseInt(size, 10, 64)
	return n * each, errors.Join(err, err2)
}

func (r *byTools) run(ctx context.Context, command string) (string, error) {
	return r.Run(ctx, command)
}
