package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"drover/tests/ports"
)

// timed runs commands joined by pipes and gives how long they took.
func timed(commands ...*exec.Cmd) (time.Duration, error) {
	var ends []io.Closer
	for i := range len(commands) - 1 {
		r, w, err := os.Pipe()
		if err != nil {
			return 0, err
		}
		commands[i].Stdout, commands[i+1].Stdin = w, r
		ends = append(ends, r, w)
	}
	begin := time.Now()
	for _, c := range commands {
		c.Stderr = os.Stderr
		if err := c.Start(); err != nil {
			return 0, err
		}
	}
	for _, e := range ends {
		_ = e.Close() // the commands have them
	}
	var err error
	for _, c := range commands {
		if e := c.Wait(); e != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", strings.Join(c.Args, " "), e))
		}
	}
	return time.Since(begin), err
}

// background starts a peer's server and waits until it listens.
func background(ctx context.Context, address string, c *exec.Cmd) (stop func(), err error) {
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		return nil, err
	}
	stop = func() { _ = c.Process.Kill(); _ = c.Wait() }
	for range 500 {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			return stop, conn.Close()
		}
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
	stop()
	return nil, fmt.Errorf("%s does not listen on %s", c.Path, address)
}

func split(address string) (host, port string) {
	host, port, _ = net.SplitHostPort(address)
	return host, port
}

// sshd runs the machine's own sshd with keys and a configuration of ours, and gives
// the command of a program at its other side.
func sshd(ctx context.Context, dir string) (remote func(argv ...string) *exec.Cmd, stop func(), err error) {
	address, err := ports.Free()
	if err != nil {
		return nil, nil, err
	}
	host, port := split(address)
	for _, key := range []string{"host", "user"} {
		if out, err := exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, key)).CombinedOutput(); err != nil {
			return nil, nil, fmt.Errorf("ssh-keygen: %w: %s", err, out)
		}
	}
	conf := fmt.Sprintf("ListenAddress %s\nHostKey %s/host\nAuthorizedKeysFile %s/user.pub\nStrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\nPasswordAuthentication no\n", address, dir, dir)
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "sshd.conf"), []byte(conf), 0o600), os.MkdirAll("/run/sshd", 0o755)); err != nil {
		return nil, nil, err
	}
	stop, err = background(ctx, address, exec.CommandContext(ctx, "/usr/sbin/sshd", "-D", "-q", "-f", filepath.Join(dir, "sshd.conf")))
	remote = func(argv ...string) *exec.Cmd {
		return exec.CommandContext(ctx, "ssh", append([]string{"-q", "-c", "aes128-gcm@openssh.com", "-i", filepath.Join(dir, "user"), "-p", port, "-F", "none",
			"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes", host}, argv...)...)
	}
	return remote, stop, err
}

// zstdSSH copies an image as one would by hand.
func (b *bench) zstdSSH(ctx context.Context, image string) (time.Duration, error) {
	target := filepath.Join(b.dir, "ssh-target")
	defer func() { _ = os.Remove(target) }()
	d, err := timed(exec.CommandContext(ctx, "zstd", "-1", "-q", "-c", image), b.ssh("zstd", "-d", "-q", "-f", "-o", target))
	return d, errors.Join(err, sameFiles(image, target))
}

// zstdBytes is what zstd -1 makes of an image.
func zstdBytes(ctx context.Context, image string) (int64, error) {
	c := exec.CommandContext(ctx, "zstd", "-1", "-q", "-c", image)
	out, err := c.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := c.Start(); err != nil {
		return 0, err
	}
	n, err := io.Copy(io.Discard, out)
	return n, errors.Join(err, c.Wait())
}

// nbdTLS copies an image with nbdcopy over TLS into nbdkit's file plugin.
func (b *bench) nbdTLS(ctx context.Context, image string) (time.Duration, error) {
	target, psk := filepath.Join(b.dir, "nbd-target"), filepath.Join(b.dir, "psk")
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	info, err := os.Stat(image)
	err = errors.Join(err, os.WriteFile(psk, []byte("drover:"+hex.EncodeToString(secret)+"\n"), 0o600), os.WriteFile(target, nil, 0o600))
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.Remove(target) }()
	address, err := ports.Free()
	if err = errors.Join(err, os.Truncate(target, info.Size())); err != nil {
		return 0, err
	}
	host, port := split(address)
	stop, err := background(ctx, address, exec.CommandContext(ctx, "nbdkit", "-f", "-i", host, "-p", port, "--tls=require", "--tls-psk="+psk, "file", target))
	if err != nil {
		return 0, err
	}
	d, err := timed(exec.CommandContext(ctx, "nbdcopy", image, fmt.Sprintf("nbds://drover@%s/?tls-psk-file=%s", address, psk)))
	stop()
	return d, errors.Join(err, sameFiles(image, target))
}

// rsync brings a copy of the old image up to the new one.
func (b *bench) rsync(ctx context.Context, old, image string) (time.Duration, error) {
	target := filepath.Join(b.dir, "rsync", filepath.Base(image))
	if err := errors.Join(os.MkdirAll(filepath.Dir(target), 0o700), clone(old, target)); err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(filepath.Dir(target)) }()
	address, err := ports.Free()
	if err != nil {
		return 0, err
	}
	host, port := split(address)
	conf := filepath.Join(b.dir, "rsyncd.conf")
	text := fmt.Sprintf("use chroot = no\nuid = root\ngid = root\n[m]\npath = %s\nread only = no\n", filepath.Dir(target))
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return 0, err
	}
	stop, err := background(ctx, address, exec.CommandContext(ctx, "rsync", "--daemon", "--no-detach", "--config="+conf, "--address="+host, "--port="+port))
	if err != nil {
		return 0, err
	}
	defer stop()
	d, err := timed(exec.CommandContext(ctx, "rsync", "--inplace", "--no-whole-file", "--ignore-times", image, fmt.Sprintf("rsync://%s/m/", address)))
	return d, errors.Join(err, sameFiles(image, target))
}
