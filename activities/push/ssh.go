package push

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"github.com/goccy/go-yaml"
	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"drover/activities/secretfile"
	"drover/datapath/durable"
	"drover/workflows/api"
)

// credentials is the file that api.PushInput.Credentials names.
type credentials struct {
	User     string `yaml:"user"`
	Password string `yaml:"password"`
	Key      string `yaml:"key"` // name of the private key's file beside it
}

func (a *Activities) secret(name string) ([]byte, error) {
	return secretfile.Read(a.config.Secrets, "credentials", name, "the file", maxSecret)
}

// login gives user and ways to log in. No error shows what is in a file.
func (a *Activities) login(name string) (string, []ssh.AuthMethod, error) {
	var c credentials
	b, err := a.secret(name)
	if err != nil {
		return "", nil, err
	}
	if yaml.NewDecoder(bytes.NewReader(b), yaml.Strict()).Decode(&c) != nil || c.User == "" || (c.Password == "") == (c.Key == "") {
		return "", nil, failed(api.CodeInvalid, nil, "credentials file %s: want YAML with user:, and one of password: and key:", name)
	}
	if c.Key == "" {
		return c.User, []ssh.AuthMethod{ssh.Password(c.Password)}, nil
	}
	if b, err = a.secret(c.Key); err != nil {
		return "", nil, err
	}
	key, err := ssh.ParsePrivateKey(b)
	if err != nil {
		return "", nil, failed(api.CodeInvalid, nil, "key file %s: want a private key without a passphrase, as ssh-keygen writes it", c.Key)
	}
	return c.User, []ssh.AuthMethod{ssh.PublicKeys(key)}, nil
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

// guest is a connection to one.
type guest struct {
	a     *Activities
	in    api.PushInput
	conn  *ssh.Client
	files *sftp.Client
	key   string
	out   api.PushResult
}

func (a *Activities) connect(ctx context.Context, in api.PushInput) (*guest, error) {
	user, ways, err := a.login(in.Credentials)
	if err != nil {
		return nil, err
	}
	address := in.Address
	if _, _, err := net.SplitHostPort(address); err != nil {
		address = net.JoinHostPort(address, "22")
	}
	g := &guest{a: a, in: in}
	config := &ssh.ClientConfig{User: user, Auth: ways, Timeout: dialTimeout, HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
		g.key = ssh.FingerprintSHA256(key)
		return a.known.check(address, in.HostKey, g.key)
	}}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, failed(api.CodePush, err, "connect to %s of %s: is sshd running, and does the configuration server reach it", address, in.Name)
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	conn, channels, requests, err := ssh.NewClientConn(raw, address, config)
	if stop(); err != nil {
		_ = raw.Close()
		return nil, failed(api.CodeInvalid, err, "log in to %s of %s as the user of credentials %s", address, in.Name, in.Credentials)
	}
	g.conn = ssh.NewClient(conn, channels, requests)
	if g.files, err = sftp.NewClient(g.conn); err != nil {
		_ = g.conn.Close()
		return nil, failed(api.CodeInvalid, err, "%s of %s has no SFTP", address, in.Name)
	}
	g.did("connect", "%s as %s, host key %s", address, user, g.key)
	return g, nil
}

func (g *guest) close() {
	_ = g.files.Close()
	_ = g.conn.Close()
}

func (g *guest) did(step, format string, args ...any) {
	g.out.Steps = append(g.out.Steps, api.PushStep{Name: step, Result: fmt.Sprintf(format, args...)})
}

// bounded keeps the beginning of what a command prints.
type bounded struct{ bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	if room := maxOutput - b.Len(); room > 0 {
		_, _ = b.Buffer.Write(p[:min(len(p), room)])
	}
	return len(p), nil
}

// run runs a command of ours in the guest: no part of it comes from outside.
func (g *guest) run(ctx context.Context, command string) (stdout string, err error) {
	ctx, cancel := context.WithTimeout(ctx, runTimeout)
	defer cancel()
	s, err := g.conn.NewSession()
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
