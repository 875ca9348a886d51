package push

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

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

const (
	clockWrong  = 5 * time.Minute        // as for the agent's own check
	serverCheck = "configuration-server" // of the agent's checks
)

const roomFactor = 3 // times the program's size, free under /usr: the old one, the new one, and some

func (g *guest) install(ctx context.Context) error {
	local, unitText, systemd, err := g.preflight(ctx)
	if err != nil {
		return err
	}
	changed, err := g.copyProgram(ctx, local)
	if err != nil {
		return err
	}
	if err := g.configure(ctx); err != nil {
		return err
	}
	if err := g.reaches(ctx); err != nil {
		return err
	}
	unitChanged, err := g.put(ctx, unit, contentOf(unitText), 0o644)
	if err != nil {
		return err
	}
	if unitChanged {
		g.did("unit", "%s is written", unit)
	} else {
		g.did("unit", "%s is as it should be", unit)
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
	no := func(cause error, format string, args ...any) (string, []byte, bool, error) {
		return "", nil, false, failed(api.CodeInvalid, cause, "push to %s: %s", g.in.Name, fmt.Sprintf(format, args...))
	}
	text, err := g.run(ctx, "uname -sm")
	if err != nil {
		return no(err, "look what it is")
	}
	words := strings.Fields(text)
	if len(words) != 2 || words[0] != "Linux" || architectures[words[1]] == "" {
		return no(nil, "the guest is %q, there are agents for Linux on x86_64 and aarch64", strings.TrimSpace(text))
	}
	if text, err = g.run(ctx, "id -u"); err != nil || strings.TrimSpace(text) != "0" {
		return no(err, "the user of credentials %s is not root (%s)", g.in.Credentials, strings.TrimSpace(text))
	}
	if err := g.notPackaged(ctx, "push to"); err != nil {
		return "", nil, false, err
	}
	local = filepath.Join(g.a.config.Agents, "drover-agent-linux-"+architectures[words[1]])
	info, err := os.Stat(local)
	if err != nil {
		return no(nil, "the configuration server has no agent for %s: %v", words[1], err)
	}
	if info.Size() > maxAgent {
		return no(nil, "%s has %d bytes, at most %d", local, info.Size(), maxAgent)
	}
	if unitText, err = os.ReadFile(filepath.Join(g.a.config.Agents, service)); err != nil {
		return no(nil, "the configuration server has no unit for systemd: %v", err)
	}
	room := "unknown"
	if free, err := g.free(ctx, path.Dir(program)); err == nil {
		if room = api.Size(free); free < roomFactor*info.Size() {
			return no(nil, "%s are free in %s, want %s", room, path.Dir(program), api.Size(roomFactor*info.Size()))
		}
	}
	systemd, err = g.exists(ctx, "/run/systemd/system")
	if err != nil {
		return no(err, "look for systemd")
	}
	btf, err := g.exists(ctx, "/sys/kernel/btf/vmlinux")
	if err != nil {
		return no(err, "look what its kernel can")
	}
	off, err := g.clock(ctx)
	if err != nil {
		return no(err, "look what time it is there")
	}
	if off.Abs() > clockWrong {
		return no(nil, "its clock is off by %s: certificates would seem expired or not yet valid; let chrony or systemd-timesyncd set it", off)
	}
	g.did("preflight", "Linux %s, %s free, clock off by %s, systemd runs: %v, kernel can track changes by ebpf: %v", words[1], room, off, systemd, btf)
	return local, unitText, systemd, nil
}

// clock says how far the guest's clock is off at least: it is read at some time between
// the question and the answer, in whole seconds.
func (g *guest) clock(ctx context.Context) (time.Duration, error) {
	asked := time.Now()
	text, err := g.run(ctx, "date +%s")
	if err != nil {
		return 0, err
	}
	answered := time.Now()
	seconds, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	if err != nil {
		return 0, err
	}
	switch there := time.Unix(seconds, 0); {
	case there.Before(asked.Add(-time.Second)):
		return there.Sub(asked).Round(time.Second), nil
	case there.After(answered.Add(time.Second)):
		return there.Sub(answered).Round(time.Second), nil
	}
	return 0, nil
}

// reaches has the agent try the way to the configuration server, before a token is made for
// it. One that has enrolled has been there.
func (g *guest) reaches(ctx context.Context) error {
	there, err := g.exists(ctx, identity)
	if err != nil {
		return failed(api.CodePush, err, "push to %s: look for %s", g.in.Name, identity)
	}
	if there {
		return nil
	}
	for _, f := range g.doctor(ctx) {
		if f.Check != serverCheck {
			continue
		}
		if f.Level == api.LevelFail {
			return failed(api.CodePush, nil, "push to %s: the guest does not reach the configuration server: %s; %s. The program and its configuration are there, nothing runs", g.in.Name, f.What, f.Advice)
		}
		g.did("reach", "%s", f.What)
	}
	return nil
}

// doctor gives what the agent finds in its guest; nil if it does not say.
func (g *guest) doctor(ctx context.Context) (findings []api.Finding) {
	text, _ := g.run(ctx, program+" doctor --json --config "+confFile) // fails when something is not well
	if json.Unmarshal([]byte(text), &findings) != nil {
		return nil
	}
	return findings
}

// notPackaged refuses a guest whose package manager has the agent.
func (g *guest) notPackaged(ctx context.Context, doing string) error {
	for _, file := range packaged {
		there, err := g.exists(ctx, file)
		if err != nil {
			return failed(api.CodePush, err, "%s %s: look for %s", doing, g.in.Name, file)
		}
		if there {
			return failed(api.CodeInvalid, nil, "%s %s: the agent was installed by the guest's package manager (%s): install, upgrade and remove it there", doing, g.in.Name, file)
		}
	}
	return nil
}

// copyProgram puts the program into its place in one step, if it is another one.
func (g *guest) copyProgram(ctx context.Context, local string) (changed bool, err error) {
	f, err := os.Open(local) //nolint:gosec // ours
	if err != nil {
		return false, failed(api.CodeInternal, err, "read the agent")
	}
	defer func() { _ = f.Close() }()
	c, err := contentOfFile(f)
	if err != nil {
		return false, failed(api.CodeInternal, err, "read the agent")
	}
	changed, err = g.put(ctx, program, c, 0o755)
	switch {
	case err != nil:
		return false, err
	case changed:
		g.did("copy", "%s, and compared there (SHA-256 %s)", program, c.digest[:16])
	default:
		g.did("copy", "%s is this one already (SHA-256 %s)", program, c.digest[:16])
	}
	return changed, nil
}

// configure writes the agent's configuration, if there is none.
func (g *guest) configure(ctx context.Context) error {
	there, err := g.exists(ctx, confFile)
	if err != nil {
		return failed(api.CodePush, err, "push to %s: look for %s", g.in.Name, confFile)
	}
	if there {
		g.did("configuration", "%s is there, and stays", confFile)
		return nil
	}
	conf := fmt.Appendf(nil, "# Written by Drover's push installation; it is not overwritten.\nconfigServer: %q\nstate: %s\ntokenFile: %s\n", g.a.config.Server, stateDir, tokenFile)
	if _, err := g.put(ctx, confFile, contentOf(conf), 0o644); err != nil {
		return err
	}
	g.did("configuration", "%s is written", confFile)
	return nil
}

// enrol exchanges a token for a certificate, unless the guest has one.
func (g *guest) enrol(ctx context.Context) error {
	there, err := g.exists(ctx, identity)
	if err != nil {
		return failed(api.CodePush, err, "push to %s: look for %s", g.in.Name, identity)
	}
	if there {
		g.did("enrol", "it has an identity already")
		return nil
	}
	token, err := g.a.config.Token(g.in.Machine, g.in.Instance)
	if err != nil {
		return failed(api.CodeInternal, err, "push to %s: issue a token", g.in.Name)
	}
	if _, err := g.put(ctx, tokenFile, contentOf([]byte(token)), 0o600); err != nil {
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
	if g.out.Findings = g.doctor(ctx); g.out.Findings == nil {
		g.did("examine", "the agent's checks could not be read")
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
