package push

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"
	"golang.org/x/crypto/ssh"

	"drover/activities/push"
	"drover/activities/vsphere"
	"drover/datapath/ident"
	"drover/tests/ports"
	"drover/worker/ca"
	"drover/worker/controlserver"
	"drover/worker/registry"
	"drover/workflows/api"
	"drover/workflows/fault"
)

var show = flag.Bool("show", false, "print what each push did (make push-demo)")

const instance = "4c4c4544-0042-3010-8052-b4c04f4a4231"

const (
	limit = 20 * time.Second // of any wait
	look  = 20 * time.Millisecond
	sshd  = "/usr/sbin/sshd"
)

func itoa(n int) string { return strconv.Itoa(n) }

// world is a guest with sshd, a configuration server, and what pushes.
type world struct {
	*push.Activities
	t      *testing.T
	engine *engine
	guest  string // name of its container
	dir    string
	agents string
	pushed time.Time // when the newest push began
	tokens []string
	reg    *registry.Registry
	in     api.PushInput
}

func need(t *testing.T) {
	t.Helper()
	missing := ""
	if os.Geteuid() != 0 {
		missing = "root"
	} else if _, err := os.Stat(sshd); err != nil {
		missing = "sshd (openssh-server)"
	}
	switch {
	case missing != "" && os.Getenv("CI") == "true":
		t.Fatal("needs " + missing)
	case missing != "":
		t.Skip("needs " + missing)
	}
}

// newWorld makes one with a configuration server and the agents, and no guest yet.
func newWorld(t *testing.T) *world {
	t.Helper()
	need(t)
	w := &world{t: t, engine: newEngine(t), dir: t.TempDir(), agents: t.TempDir()}
	w.in = api.PushInput{Machine: ident.NewMachineID("v", "db-1"), Name: "db-1", Instance: instance, Credentials: "guests"}
	require.NoError(t, os.Mkdir(w.secrets(), 0o700))
	w.build()
	return w
}

func (w *world) secrets() string { return filepath.Join(w.dir, "secrets") }

// credentials writes the file of the guest's user.
func (w *world) credentials(text string) {
	require.NoError(w.t, os.WriteFile(filepath.Join(w.secrets(), "guests"), []byte(text), 0o600))
}

// pushes makes what pushes.
func (w *world) pushes(inGuest func(context.Context, api.VMRef, vsphere.GuestUser, func(*vsphere.Guest) error) error) {
	a, err := push.New(push.Config{
		Secrets: w.secrets(), Agents: w.agents, Server: w.control(), Known: filepath.Join(w.dir, "known.json"), Logger: slog.New(slog.DiscardHandler),
		Token: w.token, InGuest: inGuest,
	})
	require.NoError(w.t, err)
	w.Activities = a
}

// overSSH is a world whose guest has sshd.
func overSSH(t *testing.T, systemd bool) *world {
	t.Helper()
	w := newWorld(t)
	w.sshd(systemd)
	w.credentials("user: root\nkey: id\n")
	w.pushes(func(context.Context, api.VMRef, vsphere.GuestUser, func(*vsphere.Guest) error) error {
		return errors.New("this guest is reached by SSH")
	})
	return w
}

var fingerprint string

func (w *world) token(machine ident.MachineID, hardware string) (string, error) {
	secret, err := w.reg.IssueToken(registry.TokenSpec{Peer: ident.Peer{Role: ident.RoleAgent, Name: machine.String()}, Instance: hardware})
	w.tokens = append(w.tokens, secret)
	return fingerprint + "." + secret, err
}

// control runs a configuration server's API.
func (w *world) control() string {
	t := w.t
	state := t.TempDir()
	authority, err := ca.Open(state, 24*time.Hour)
	require.NoError(t, err)
	fingerprint = authority.Fingerprint()
	w.reg, err = registry.Open(state)
	require.NoError(t, err)
	srv, err := controlserver.New(controlserver.Config{Name: "cs-1", StateDir: state, Hosts: []string{"127.0.0.1"}, CA: authority, Registry: w.reg,
		Logger: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry()})
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, l) }()
	t.Cleanup(func() { stop(); require.NoError(t, <-done); require.NoError(t, w.reg.Close()) })
	return "https://" + l.Addr().String()
}

// build makes the agent and puts its unit beside it.
func (w *world) build() {
	arch := strings.TrimSpace(output(w.t, "go", "env", "GOARCH"))
	cmd := exec.CommandContext(w.t.Context(), "go", "build", "-ldflags", "-s -w -X main.version=1.0.0", "-o", filepath.Join(w.agents, "drover-agent-linux-"+arch), "drover/agent/cmd/drover-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	require.NoError(w.t, err, "%s", out)
	unit, err := os.ReadFile("../../agent/packaging/drover-agent.service")
	require.NoError(w.t, err)
	require.NoError(w.t, os.WriteFile(filepath.Join(w.agents, "drover-agent.service"), unit, 0o644))
}

func output(t *testing.T, name string, args ...string) string {
	out, err := exec.CommandContext(t.Context(), name, args...).Output()
	require.NoError(t, err)
	return string(out)
}

func (w *world) key(file string) ssh.PublicKey {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(w.t, err)
	block, err := ssh.MarshalPrivateKey(key, "")
	require.NoError(w.t, err)
	require.NoError(w.t, os.MkdirAll(filepath.Dir(file), 0o700))
	require.NoError(w.t, os.WriteFile(file, pem.EncodeToMemory(block), 0o600))
	signer, err := ssh.NewSignerFromKey(key)
	require.NoError(w.t, err)
	return signer.PublicKey()
}

// image is one of tests/vsim/docker.
func image(systemd bool) string {
	if systemd {
		return "systemd"
	}
	return "plain"
}

// sshd starts a guest with sshd.
func (w *world) sshd(systemd bool) {
	t := w.t
	user := w.key(filepath.Join(w.secrets(), "id"))
	w.guest = "db-1"
	w.engine.docker("create", "--name", w.guest, "--env", "INSTANCE="+instance, image(systemd))
	w.engine.docker("start", w.guest)
	w.key(w.inside("/etc/ssh/host_key"))
	require.NoError(t, os.WriteFile(w.inside("/etc/ssh/authorized"), ssh.MarshalAuthorizedKey(user), 0o600))
	address, err := ports.Free()
	require.NoError(t, err)
	w.in.Address = address
	_, port, err := net.SplitHostPort(address)
	require.NoError(t, err)
	conf := fmt.Sprintf("Port %s\nListenAddress 127.0.0.1\nHostKey /etc/ssh/host_key\nAuthorizedKeysFile /etc/ssh/authorized\nPidFile none\nStrictModes no\nUsePAM no\n"+
		"PermitRootLogin yes\nPasswordAuthentication no\nSubsystem sftp internal-sftp\n", port)
	require.NoError(t, os.WriteFile(w.inside("/etc/ssh/test_config"), []byte(conf), 0o600))
	log, ended := new(bytes.Buffer), make(chan struct{})
	cmd := exec.Command("docker", "exec", w.guest, sshd, "-D", "-e", "-f", "/etc/ssh/test_config") //nolint:noctx // ended below
	cmd.Stderr = log
	require.NoError(t, cmd.Start())
	go func() { defer close(ended); _ = cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
	require.Eventually(t, func() bool {
		select {
		case <-ended:
			t.Fatalf("the guest ended: %s", log.String())
		default:
		}
		c, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}, limit, look)
}

// inside is a file of the running guest.
func (w *world) inside(path string) string {
	w.t.Helper()
	pid := w.engine.pid(w.guest)
	require.NotZero(w.t, pid, "the guest is off")
	return filepath.Join("/proc", itoa(pid), "root", path)
}

func (w *world) push() map[string]string {
	w.t.Helper()
	w.pushed = time.Now()
	out, err := w.Push(w.t.Context(), w.in)
	require.NoError(w.t, err)
	steps := map[string]string{}
	for _, s := range out.Steps {
		if *show {
			fmt.Printf("%-14s %s\n", s.Name, s.Result)
		}
		steps[s.Name] += s.Result
	}
	if !w.in.Remove {
		require.Equal(w.t, "1.0.0", out.Version)
		require.NotEmpty(w.t, out.Findings, "the agent looks at its guest")
	}
	return steps
}

func (w *world) banner(format string, args ...any) {
	if *show {
		fmt.Printf("\n== "+format+"\n", args...)
	}
}

// TestInstallUpgradeRemove is the life of an agent in a guest: each push does what is not
// done, and says so.
func TestInstallUpgradeRemove(t *testing.T) {
	t.Run(api.PushBySSH, func(t *testing.T) { installUpgradeRemove(t, overSSH(t, true)) })
	t.Run(api.PushByTools, func(t *testing.T) {
		w := byTools(t, true, 0)
		installUpgradeRemove(t, w.world)
		w.nothingSecret()
	})
}

func installUpgradeRemove(t *testing.T, w *world) {
	t.Helper()
	w.banner("install")
	steps := w.push()
	require.Contains(t, steps["copy"], "compared there")
	require.Contains(t, steps["enrol"], "for this machine alone")
	peers, err := w.reg.Peers()
	require.NoError(t, err)
	require.Len(t, peers, 1, "the agent has enrolled")
	require.Equal(t, w.in.Machine.String(), peers[0].Name)
	for file, mode := range map[string]os.FileMode{"/usr/bin/drover-agent": 0o755, "/etc/drover/agent.yaml": 0o644, "/etc/systemd/system/drover-agent.service": 0o644, "/etc/drover/agent.token": 0o600} {
		info, err := os.Stat(w.inside(file))
		if file == "/etc/drover/agent.token" && errors.Is(err, os.ErrNotExist) {
			continue // the agent removed it
		}
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode(), file)
	}
	_, err = os.Stat("/usr/bin/drover-agent")
	require.ErrorIs(t, err, os.ErrNotExist, "this system is not touched")
	log := func() string {
		b, err := os.ReadFile(w.inside("/systemctl.log"))
		require.NoError(t, err)
		return string(b)
	}
	require.Equal(t, "daemon-reload\nenable drover-agent.service\nrestart drover-agent.service\nis-active drover-agent.service\n", log())
	w.heard()

	w.banner("install again: nothing is done twice")
	steps = w.push()
	require.Contains(t, steps["copy"], "already")
	require.Contains(t, steps["enrol"], "already")
	require.Len(t, w.tokens, 1)
	require.Contains(t, log(), "start drover-agent.service\nis-active")

	w.banner("upgrade")
	names, err := filepath.Glob(filepath.Join(w.agents, "drover-agent-linux-*"))
	require.NoError(t, err)
	program, err := os.ReadFile(names[0])
	require.NoError(t, err)
	next := slices.Concat(program, []byte("another build"))
	require.NoError(t, os.WriteFile(names[0], next, 0o755)) //nolint:gosec // a program
	before := strings.Count(log(), "\nrestart ")
	require.Contains(t, w.push()["copy"], "compared there")
	there, err := os.ReadFile(w.inside("/usr/bin/drover-agent"))
	require.NoError(t, err)
	require.True(t, bytes.Equal(next, there))
	require.Equal(t, before+1, strings.Count(log(), "\nrestart "), "the new program is run")
	require.Len(t, w.tokens, 1)

	w.banner("remove, and again")
	w.in.Remove = true
	require.Contains(t, w.push()["remove"], "/usr/bin/drover-agent")
	require.Empty(t, w.push()["remove"], "there is nothing left to remove")
	for _, file := range []string{"/usr/bin/drover-agent", "/run/drover-agent.service.pid"} {
		_, err = os.Stat(w.inside(file))
		require.ErrorIs(t, err, os.ErrNotExist)
	}
	_, err = os.Stat(w.inside("/var/lib/drover/agent/identity"))
	require.NoError(t, err, "the identity stays")
}

// heard waits until an agent that was started by the newest push, where none ran before, tells
// the configuration server of itself.
func (w *world) heard() {
	w.t.Helper()
	require.Eventually(w.t, func() bool {
		agents, err := w.reg.Agents(w.in.Machine)
		require.NoError(w.t, err)
		return len(agents) == 1 && agents[0].LastSeen.After(w.pushed) && strings.EqualFold(agents[0].Instance, w.in.Instance)
	}, limit, look, "the agent does not run")
}

// TestServerIsNotReached: that is found out in the guest before a token is made, and nothing
// runs there.
func TestServerIsNotReached(t *testing.T) {
	for by, make := range map[string]func(*testing.T) *world{
		api.PushBySSH:   func(t *testing.T) *world { return overSSH(t, true) },
		api.PushByTools: func(t *testing.T) *world { return byTools(t, true, 0).world },
	} {
		t.Run(by, func(t *testing.T) {
			w := make(t)
			away, err := ports.Free()
			require.NoError(t, err)
			require.NoError(t, os.MkdirAll(w.inside("/etc/drover"), 0o755))
			conf := fmt.Sprintf("configServer: https://%s\nstate: /var/lib/drover/agent\ntokenFile: /etc/drover/agent.token\n", away)
			require.NoError(t, os.WriteFile(w.inside("/etc/drover/agent.yaml"), []byte(conf), 0o644)) //nolint:gosec // no secret
			_, err = w.Push(t.Context(), w.in)
			require.ErrorContains(t, err, "the guest does not reach the configuration server: https://"+away+" is not reached")
			require.Equal(t, api.CodePush, fault.Code(err))
			require.Empty(t, w.tokens)
			for _, file := range []string{"/etc/systemd/system/drover-agent.service", "/systemctl.log", "/etc/drover/agent.token"} {
				_, err = os.Stat(w.inside(file))
				require.ErrorIs(t, err, os.ErrNotExist, file)
			}
			require.NoError(t, os.Remove(w.inside("/etc/drover/agent.yaml")))
			require.Contains(t, w.push()["reach"], "is reached")
		})
	}
}

// TestWithoutSystemd: all is done but the start, and that is said.
func TestWithoutSystemd(t *testing.T) {
	w := overSSH(t, false)
	require.Contains(t, w.push()["start"], "systemd does not run")

	// Whom it trusts: the key that was recorded, or the one that is given.
	w.in.HostKey = "SHA256:AAAA"
	_, err := w.Push(t.Context(), w.in)
	refused(t, err, "host key is not the one that is known")
	w.in.HostKey = ""
	b, err := os.ReadFile(filepath.Join(w.dir, "known.json"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(w.dir, "known.json"), bytes.Replace(b, []byte("SHA256:"), []byte("SHA256:x"), 1), 0o600))
	_, err = w.Push(t.Context(), w.in)
	refused(t, err, "showed SHA256:x")
	require.NoError(t, os.WriteFile(filepath.Join(w.dir, "known.json"), b, 0o600))

	// What could not work is refused before anything is changed.
	for name, file := range map[string]string{"no PEM": "user: root\nkey: guests\n", "both": "user: root\nkey: id\npassword: hunter2\n", "path": "user: root\nkey: ../id\n"} {
		require.NoError(t, os.WriteFile(filepath.Join(w.dir, "secrets", "wrong"), []byte(file), 0o600))
		in := w.in
		in.Credentials = "wrong"
		_, err = w.Push(t.Context(), in)
		require.Error(t, err, name)
		require.NotContains(t, err.Error(), "hunter2")
	}
	list := w.inside("/var/lib/dpkg/info/drover-agent.list")
	require.NoError(t, os.MkdirAll(filepath.Dir(list), 0o755))
	require.NoError(t, os.WriteFile(list, nil, 0o644))
	_, err = w.Push(t.Context(), w.in)
	refused(t, err, "package manager")
	w.in.Remove = true
	_, err = w.Push(t.Context(), w.in)
	refused(t, err, "package manager")
}

func refused(t *testing.T, err error, text string) {
	t.Helper()
	require.ErrorContains(t, err, text)
	var app *temporal.ApplicationError
	require.ErrorAs(t, err, &app)
	require.Equal(t, api.CodeInvalid, app.Type())
}
