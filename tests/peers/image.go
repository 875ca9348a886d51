package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// source is the tree that disks are filled from.
const source = "/usr"

// perDirectory bounds the files of a directory: mke2fs looks at all of them to add one.
const perDirectory = 500

// image makes one of the disks, once: real is an ext4 file system filled to four
// fifths from the machine's own programs, half to two fifths, zero and random are what
// they say.
func (b *bench) image(ctx context.Context, kind string) (string, error) {
	if path, ok := b.images[kind]; ok {
		return path, nil
	}
	b.note("making the %s disk", kind)
	path := filepath.Join(b.dir, kind+".img")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, b.size)); err != nil {
		return "", err
	}
	var err error
	switch kind {
	case "real":
		err = b.filled(ctx, path, b.size*4/5)
	case "half":
		err = b.filled(ctx, path, b.size*2/5)
	case "random":
		err = random(path, b.size)
	}
	b.images[kind] = path
	return path, err
}

func random(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, rand.Reader, size)
	return errors.Join(err, f.Close())
}

// filled makes a file system with so many bytes of the source's files: every third
// directory entry is left out, so that they come from all of it.
func (b *bench) filled(ctx context.Context, path string, want int64) error {
	tree, err := b.sub("tree")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tree) }()
	n := 0
	err = filepath.WalkDir(source, func(name string, d fs.DirEntry, err error) error {
		if err != nil || want <= 0 || strings.HasPrefix(name, source+"/local") {
			return nil //nolint:nilerr // what cannot be read is left out
		}
		info, err := d.Info()
		if err != nil || !info.Mode().IsRegular() || info.Size() > 16<<20 {
			return nil //nolint:nilerr // the same
		}
		if n++; n%3 == 0 {
			return nil
		}
		want -= info.Size() + 2048
		dir := filepath.Join(tree, strconv.Itoa(n/perDirectory))
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		return copyFile(name, filepath.Join(dir, strings.ReplaceAll(strings.TrimPrefix(name, source+"/"), "/", "_")))
	})
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, path).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mke2fs: %w: %s", err, out)
	}
	return nil
}

func copyFile(from, to string) error {
	if len(filepath.Base(to)) > 250 {
		return nil
	}
	r, err := os.Open(from)
	if err != nil {
		return nil
	}
	defer func() { _ = r.Close() }()
	w, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	return errors.Join(err, w.Close())
}

// clone copies a file, keeping its holes.
func clone(from, to string) error {
	out, err := exec.Command("cp", "--sparse=always", from, to).CombinedOutput()
	if err != nil {
		return fmt.Errorf("cp: %w: %s", err, out)
	}
	return nil
}
