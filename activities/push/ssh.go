package push

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path"
	"sync"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"drover/datapath/durable"
	"drover/workflows/api"
)

// ways gives the ways to log in.
func (a *Activities) ways(c credentials) ([]ssh.AuthMethod, error) {
	if c.Key == "" {
		return []ssh.AuthMethod{ssh.Password(c.Password)}, nil
	}
	b, err := a.secret(c.Key)
	if err != nil {
		return nil, err
	}
	key, err := ssh.ParsePrivateKey(b)
	if err != nil {
		return nil, failed(api.CodeInvalid, nil, "key file %s: want a private key without a passphrase, as ssh-keygen writes it", c.Key)
	}
	return []ssh.AuthMethod{ssh.PublicKeys(key)}, nil
}

// known keeps the host keys of guests that were met.
type known struct {
	mu   sync.Mutex
	file string
}

// check compares a guest's key with the one that is pinned or recorded; with neither the
// key is recorded.
func (k *known) check(address, pinned, shown string) error {
	if pinned != "" {
		if pinned != shown {
			return fmt.Errorf("%w: it shows %s, want %s", errHostKey, shown, pinned)
		}
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	all := map[string]string{}
	b, err := os.ReadFile(k.file)
	if err == nil {
		err = json.Unmarshal(b, &all)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read the recorded host keys in %s: %w", k.file, err)
	}
	switch before := all[address]; {
	case before == shown:
		return nil
	case before != "":
		return fmt.Errorf("%w: it shows %s, and showed %s before; if it was installed anew, give the new one with --host-key", errHostKey, shown, before)
	case len(all) >= maxHosts:
		return fmt.Errorf("%w: %d are recorded, no more fit; give it with --host-key", errHostKey, maxHosts)
	}
	all[address] = shown
	if b, err = json.MarshalIndent(all, "", "  "); err != nil {
		return err
	}
	return durable.WriteFile(k.file, b, 0o600)
}

var errHostKey = errors.New("the guest's host key is not the one that is known")

// bySSH reaches a guest over its sshd.
type bySSH struct {
	conn  *ssh.Client
	files *sftp.Client
}

// overSSH works in the guest over its sshd.
func (a *Activities) overSSH(ctx context.Context, in api.PushInput, c credentials) (api.PushResult, error) {
	ways, err := a.ways(c)
	if err != nil {
		return api.PushResult{}, err
	}
	address := in.Address
	if _, _, err := net.SplitHostPort(address); err != nil {
		address = net.JoinHostPort(address, "22")
	}
	r, key, err := a.dial(ctx, in, address, c.User, ways)
	if err != nil {
		return api.PushResult{}, err
	}
	defer r.close()
	g := &guest{reach: r, a: a, in: in}
	g.out.HostKey = key
	g.did("connect", "%s as %s, host key %s", address, c.User, key)
	err = g.work(ctx)
	return g.out, err
}

// dial connects, and gives the host key that the guest showed.
func (a *Activities) dial(ctx context.Context, in api.PushInput, address, user string, ways []ssh.AuthMethod) (*bySSH, string, error) {
	shown := ""
	config := &ssh.ClientConfig{User: user, Auth: ways, Timeout: dialTimeout, HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
		shown = ssh.FingerprintSHA256(key)
		return a.known.check(address, in.HostKey, shown)
	}}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, "", failed(api.CodePush, err, "connect to %s of %s: is sshd running, and does the configuration server reach it", address, in.Name)
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	conn, channels, requests, err := ssh.NewClientConn(raw, address, config)
	if stop(); err != nil {
		_ = raw.Close()
		return nil, "", failed(api.CodeInvalid, err, "log in to %s of %s as the user of credentials %s", address, in.Name, in.Credentials)
	}
	r := &bySSH{conn: ssh.NewClient(conn, channels, requests)}
	if r.files, err = sftp.NewClient(r.conn); err != nil {
		_ = r.conn.Close()
		return nil, "", failed(api.CodeInvalid, err, "%s of %s has no SFTP", address, in.Name)
	}
	return r, shown, nil
}

func (r *bySSH) close() {
	_ = r.files.Close()
	_ = r.conn.Close()
}

func (r *bySSH) exists(_ context.Context, file string) (bool, error) {
	_, err := r.files.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// digest reads the file back.
func (r *bySSH) digest(_ context.Context, file string) (string, error) {
	f, err := r.files.Open(file)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	_, err = io.Copy(sum, io.LimitReader(f, maxAgent+1))
	return hex.EncodeToString(sum.Sum(nil)), err
}

// place makes a file beside its place, reads it back, and moves it there.
func (r *bySSH) place(ctx context.Context, file string, content io.Reader, _ int64, mode fs.FileMode, digest string) error {
	if err := r.files.MkdirAll(path.Dir(file)); err != nil {
		return err
	}
	part := path.Join(path.Dir(file), "."+path.Base(file)+".part")
	// What an earlier try left may have another mode.
	if err := r.files.Remove(part); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := r.files.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	err = f.Chmod(mode)
	if err == nil {
		_, err = io.Copy(f, content)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	have, err := r.digest(ctx, part)
	if err != nil {
		return err
	}
	if have != digest {
		return wrongDigest(have, digest)
	}
	return r.files.PosixRename(part, file)
}

func (r *bySSH) remove(_ context.Context, file string) error { return r.files.Remove(file) }

func (r *bySSH) free(_ context.Context, dir string) (int64, error) {
	v, err := r.files.StatVFS(dir)
	if err != nil {
		return 0, err
	}
	return int64(v.Bavail * v.Bsize), nil //nolint:gosec // of a real disk
}

// bounded keeps the beginning of what a command prints.
type bounded struct{ bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	if room := maxOutput - b.Len(); room > 0 {
		_, _ = b.Buffer.Write(p[:min(len(p), room)])
	}
	return len(p), nil
}

func (r *bySSH) run(ctx context.Context, command string) (stdout string, err error) {
	ctx, cancel := context.WithTimeout(ctx, runTimeout)
	defer cancel()
	s, err := r.conn.NewSession()
	if err != nil {
		return "", fmt.Errorf("%s: %w", command, err)
	}
	defer func() { _ = s.Close() }()
	var out, errs bounded
	s.Stdout, s.Stderr = &out, &errs
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err = s.Run(command); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", command, err, bytes.TrimSpace(errs.Bytes()))
	}
	return out.String(), nil
}
