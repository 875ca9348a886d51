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
	"os"
	"path"
	"path/filepath"
	"strings"

	"drover/workflows/api"
)

// Where things go in a guest; docs/agent.md says the same.
const (
	program   = "/usr/bin/drover-agent"
	unit      = "/etc/systemd/system/drover-agent.service"
	configDir = "/etc/drover"
	confFile  = configDir + "/agent.yaml"
	tokenFile = configDir + "/agent.token"
	stateDir  = "/var/lib/drover/agent"
	identity  = stateDir + "/identity"
	service   = "drover-agent.service"
)

// packaged are files that a package manager leaves when it has installed the agent.
var packaged = []string{"/var/lib/dpkg/info/drover-agent.list", "/usr/lib/systemd/system/drover-agent.service", "/lib/systemd/system/drover-agent.service"}

// architectures are what uname calls those for which there are agents.
var architectures = map[string]string{"x86_64": "amd64", "aarch64": "arm64"}

const roomFactor = 3 // times the program's size, free under /usr: the old one, the new one, and some

func (g *guest) install(ctx context.Context) error {
	local, unitText, systemd, err := g.preflight(ctx)
	if err != nil {
		return err
	}
	changed, err := g.copyProgram(local)
	if err != nil {
		return err
	}
	conf := fmt.Appendf(nil, "# Written by Drover's push installation; it is not overwritten.\nconfigServer: %q\nstate: %s\ntokenFile: %s\n", g.a.config.Server, stateDir, tokenFile)
	if _, err := g.files.Stat(confFile); err == nil {
		g.did("configuration", "%s is there, and stays", confFile)
	} else if _, err := g.put("configuration", confFile, conf, 0o644); err != nil {
		return err
	}
	unitChanged, err := g.put("unit", unit, unitText, 0o644)
	if err != nil {
		return err
	}
	if err := g.enrol(ctx); err != nil {
		return err
	}
	if err := g.start(ctx, systemd, changed || unitChanged); err != nil {
		return err
	}
	return g.examine(ctx)
}

// preflight refuses what could not work before anything is changed.
func (g *guest) preflight(ctx context.Context) (local string, unitText []byte, systemd bool, err error) {
	no := func(format string, args ...any) (string, []byte, bool, error) {
		return "", nil, false, failed(api.CodeInvalid, nil, "push to %s: %s", g.in.Name, fmt.Sprintf(format, args...))
	}
	text, err := g.run(ctx, "uname -sm")
	if err != nil {
		return no("%v", err)
	}
	words := strings.Fields(text)
	if len(words) != 2 || words[0] != "Linux" || architectures[words[1]] == "" {
		return no("the guest is %q, there are agents for Linux on x86_64 and aarch64", strings.TrimSpace(text))
	}
	if text, err = g.run(ctx, "id -u"); err != nil || strings.TrimSpace(text) != "0" {
		return no("the user of credentials %s is not root (%s)", g.in.Credentials, strings.TrimSpace(text))
	}
	for _, file := range packaged {
		if _, err := g.files.Stat(file); err == nil {
			return no("the agent was installed by the guest's package manager (%s): upgrade and remove it there", file)
		}
	}
	local = filepath.Join(g.a.config.Agents, "drover-agent-linux-"+architectures[words[1]])
	info, err := os.Stat(local)
	if err != nil {
		return no("the configuration server has no agent for %s: %v", words[1], err)
	}
	if info.Size() > maxAgent {
		return no("%s has %d bytes, at most %d", local, info.Size(), maxAgent)
	}
	if unitText, err = os.ReadFile(filepath.Join(g.a.config.Agents, service)); err != nil {
		return no("the configuration server has no unit for systemd: %v", err)
	}
	room := "unknown"
	if v, err := g.files.StatVFS(path.Dir(program)); err == nil {
		free := int64(v.Bavail * v.Bsize) //nolint:gosec // of a real disk
		if room = api.Size(free); free < roomFactor*info.Size() {
			return no("%s are free in %s, want %s", room, path.Dir(program), api.Size(roomFactor*info.Size()))
		}
	}
	_, err = g.files.Stat("/run/systemd/system")
	systemd = err == nil
	_, err = g.files.Stat("/sys/kernel/btf/vmlinux")
	g.did("preflight", "Linux %s, %s free, systemd runs: %v, kernel can track changes by ebpf: %v", words[1], room, systemd, err == nil)
	return local, unitText, systemd, nil
}

// copyProgram puts the program into its place in one step, if it is another one.
func (g *guest) copyProgram(local string) (changed bool, err error) {
	f, err := os.Open(local) //nolint:gosec // ours
	if err != nil {
		return false, failed(api.CodeInternal, err, "read the agent")
	}
	defer func() { _ = f.Close() }()
	want, err := digest(f)
	if err != nil {
		return false, failed(api.CodeInternal, err, "read the agent")
	}
	if have, err := g.digestOf(program); err == nil && have == want {
		g.did("copy", "%s is this one already (SHA-256 %s)", program, want[:16])
		return false, nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return false, failed(api.CodeInternal, err, "read the agent")
	}
	if err := g.write(program, f, 0o755, want); err != nil {
		return false, err
	}
	g.did("copy", "%s, read back and compared (SHA-256 %s)", program, want[:16])
	return true, nil
}

// put writes a small file, if it is not as it should be.
func (g *guest) put(step, file string, content []byte, mode fs.FileMode) (changed bool, err error) {
	sum := sha256.Sum256(content)
	want := hex.EncodeToString(sum[:])
	if have, err := g.digestOf(file); err == nil && have == want {
		g.did(step, "%s is as it should be", file)
		return false, nil
	}
	if err := g.write(file, bytes.NewReader(content), mode, want); err != nil {
		return false, err
	}
	g.did(step, "%s is written", file)
	return true, nil
}

// write makes a file beside its place, reads it back, and moves it there in one step.
func (g *guest) write(file string, content io.Reader, mode fs.FileMode, want string) error {
	wrong := func(err error) error {
		return failed(api.CodePush, err, "push to %s: write %s", g.in.Name, file)
	}
	part := path.Join(path.Dir(file), "."+path.Base(file)+".part")
	if err := g.files.MkdirAll(path.Dir(file)); err != nil {
		return wrong(err)
	}
	// What an earlier try left may have another mode.
	if err := g.files.Remove(part); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return wrong(err)
	}
	f, err := g.files.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return wrong(err)
	}
	err = f.Chmod(mode)
	if err == nil {
		_, err = io.Copy(f, content)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return wrong(err)
	}
	have, err := g.digestOf(part)
	if err == nil && have != want {
		err = fmt.Errorf("what was written has the SHA-256 %s, want %s", have, want)
	}
	if err == nil {
		err = g.files.PosixRename(part, file)
	}
	if err != nil {
		return wrong(err)
	}
	return nil
}

func (g *guest) digestOf(file string) (string, error) {
	f, err := g.files.Open(file)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	return digest(io.LimitReader(f, maxAgent+1))
}

func digest(r io.Reader) (string, error) {
	sum := sha256.New()
	_, err := io.Copy(sum, r)
	return hex.EncodeToString(sum.Sum(nil)), err
}

// enrol exchanges a token for a certificate, unless the guest has one.
func (g *guest) enrol(ctx context.Context) error {
	if _, err := g.files.Stat(identity); err == nil {
		g.did("enrol", "it has an identity already")
		return nil
	}
	token, err := g.a.config.Token(g.in.Machine, g.in.Instance)
	if err != nil {
		return failed(api.CodeInternal, err, "push to %s: issue a token", g.in.Name)
	}
	sum := sha256.Sum256([]byte(token))
	if err := g.write(tokenFile, strings.NewReader(token), 0o600, hex.EncodeToString(sum[:])); err != nil {
		return err
	}
	if _, err := g.run(ctx, program+" enrol --config "+confFile); err != nil {
		return failed(api.CodePush, err, "push to %s: the agent could not enrol; does the guest reach %s", g.in.Name, g.a.config.Server)
	}
	g.did("enrol", "with a token for this machine alone")
	return nil
}

// start has systemd run the agent, and restarts it when it is another one.
func (g *guest) start(ctx context.Context, systemd, changed bool) error {
	if !systemd {
		g.did("start", "systemd does not run in the guest: start `%s run` by its own means", program)
		return nil
	}
	verb := "start "
	if changed {
		verb = "restart "
	}
	for _, command := range []string{"systemctl daemon-reload", "systemctl enable " + service, "systemctl " + verb + service, "systemctl is-active " + service} {
		if _, err := g.run(ctx, command); err != nil {
			return failed(api.CodePush, err, "push to %s", g.in.Name)
		}
	}
	g.out.Started = true
	g.did("start", "%s is enabled and runs", service)
	return nil
}

// examine has the agent check its guest. What it finds blocks nothing.
func (g *guest) examine(ctx context.Context) error {
	version, err := g.run(ctx, program+" version")
	if err != nil {
		return failed(api.CodePush, err, "push to %s: the agent does not run there", g.in.Name)
	}
	g.out.Version = strings.TrimSpace(version)
	text, _ := g.run(ctx, program+" doctor --json --config "+confFile) // fails when something is not well
	if err := json.Unmarshal([]byte(text), &g.out.Findings); err != nil {
		g.did("examine", "the agent's checks could not be read: %v", err)
		return nil
	}
	wrong := 0
	for _, f := range g.out.Findings {
		if f.Level != api.LevelOK {
			wrong++
		}
	}
	g.did("examine", "version %s, %d checks, %d of them not well", g.out.Version, len(g.out.Findings), wrong)
	return nil
}
