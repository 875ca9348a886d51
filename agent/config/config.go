// Package config reads the agent's configuration file. Decoding is strict: an
// unknown field or a wrong value is an error that names file and line.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"

	"drover/agent/proxy"
	"drover/agent/quiesce"
	"drover/agent/quiesce/freeze"
	"drover/agent/status"
	"drover/agent/tracker/ebpf"
	"drover/agent/tracker/scan"
	"drover/agent/tracker/trace"
)

const (
	maxFile    = 1 << 20 // bytes of the file
	maxDisks   = 64
	maxTimeout = 10 * time.Minute
)

// Config of an agent.
type Config struct {
	ConfigServer string `yaml:"configServer"` // https://host:port
	State        string `yaml:"state"`        // directory of the identity
	TokenFile    string `yaml:"tokenFile"`    // read while there is no valid identity; agent.token beside the file when empty
	Socket       string `yaml:"socket"`       // of the status; status.DefaultSocket when empty
	// Instance is the machine's hardware uuid; empty: what the firmware says.
	Instance string `yaml:"instance"`
	// Disks maps backing uuids to devices or image files, where the system itself
	// does not name its disks so.
	Disks map[string]string `yaml:"disks"`
	// Tracker is how changes are found: auto takes the best that works here.
	Tracker string `yaml:"tracker"` // auto, ebpf, trace, scan
	// SkipFree leaves out what ext4 and xfs have free, with the scan tracker.
	SkipFree bool `yaml:"skipFree"`
	// Pins is where what tracks changes outlives the agent: a directory in a bpffs.
	Pins    string  `yaml:"pins"`
	Quiesce Quiesce `yaml:"quiesce"`
	Freeze  Freeze  `yaml:"freeze"`
	Scripts Scripts `yaml:"scripts"`
	Limits  Limits  `yaml:"limits"`
	Metrics string  `yaml:"metrics"` // address of /metrics and /healthz; empty: none
	Proxy   string  `yaml:"proxy"`   // http://host:port; empty: connect directly
}

// TrackerAuto takes the best tracker that works.
const TrackerAuto = "auto"

// trackers are what Tracker may be.
var trackers = []string{TrackerAuto, ebpf.Name, trace.Name, scan.Name}

// Freeze says how file systems are frozen for a cut.
type Freeze struct {
	Off   bool     `yaml:"off"`
	Limit Duration `yaml:"limit"` // after it they are thawed, whatever happens
}

// Scripts says where the scripts of application-consistent cuts are.
type Scripts struct {
	Directory string   `yaml:"directory"`
	Timeout   Duration `yaml:"timeout"` // of each
}

// Quiesce says what runs around every cut.
type Quiesce struct {
	Pre     []string `yaml:"pre"`
	Post    []string `yaml:"post"`
	Timeout Duration `yaml:"timeout"`
}

// Duration is a time.Duration in YAML, "2s".
type Duration time.Duration

// UnmarshalYAML reads what time.ParseDuration reads.
func (d *Duration) UnmarshalYAML(n ast.Node) error {
	text := strings.Trim(n.String(), `"' `)
	v, err := time.ParseDuration(text)
	if err != nil {
		return &wrongValue{n.GetToken().Position.Line, fmt.Sprintf("%q: want a duration such as 2s", text)}
	}
	*d = Duration(v)
	return nil
}

// wrongValue is a value that cannot be read, with its line.
type wrongValue struct {
	line int
	why  string
}

func (w *wrongValue) Error() string { return w.why }

// Load reads and checks the file. Relative paths are relative to it.
func Load(file string) (*Config, error) {
	content, err := read(file)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	c := &Config{
		Tracker: TrackerAuto,
		Pins:    ebpf.DefaultDir,
		Quiesce: Quiesce{Timeout: Duration(quiesce.DefaultTimeout)},
		Freeze:  Freeze{Limit: Duration(freeze.DefaultLimit)},
		Scripts: Scripts{Directory: quiesce.DefaultScripts, Timeout: Duration(quiesce.DefaultScriptTimeout)},
		Limits:  defaultLimits(),
	}
	err = yaml.NewDecoder(bytes.NewReader(content), yaml.Strict()).Decode(c)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, located(file, err)
	}
	dir, err := filepath.Abs(filepath.Dir(file))
	if err != nil {
		return nil, fmt.Errorf("read the configuration %s: %w", file, err)
	}
	if err := c.check(dir); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

func read(file string) ([]byte, error) {
	f, err := os.Open(file) //nolint:gosec // the operator names it
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if len(content) > maxFile {
		return nil, fmt.Errorf("%s: larger than %d bytes", file, maxFile)
	}
	return content, nil
}

func located(file string, err error) error {
	var w *wrongValue
	if errors.As(err, &w) {
		return fmt.Errorf("%s:%d: %w", file, w.line, w)
	}
	var e yaml.Error
	if errors.As(err, &e) && e.GetToken() != nil {
		return fmt.Errorf("%s:%d: %s", file, e.GetToken().Position.Line, e.GetMessage())
	}
	return fmt.Errorf("%s: %w", file, err)
}

func (c *Config) check(dir string) error {
	u, err := url.Parse(c.ConfigServer)
	if err != nil || u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" {
		return fmt.Errorf("configServer: %q: want https://host:port", c.ConfigServer)
	}
	if c.State == "" {
		return errors.New("state: a directory is needed, e.g. /var/lib/drover/agent")
	}
	if len(c.Disks) > maxDisks {
		return fmt.Errorf("disks: %d, at most %d", len(c.Disks), maxDisks)
	}
	if !slices.Contains(trackers, c.Tracker) {
		return fmt.Errorf("tracker: %q: want one of %s", c.Tracker, strings.Join(trackers, ", "))
	}
	if len(c.Quiesce.Post) > 0 != (len(c.Quiesce.Pre) > 0) {
		return errors.New("quiesce: pre and post go together: what is frozen must be thawed")
	}
	if t := time.Duration(c.Quiesce.Timeout); t <= 0 || t > maxTimeout {
		return fmt.Errorf("quiesce.timeout: %s: want more than 0 and at most %s", t, maxTimeout)
	}
	if t := time.Duration(c.Freeze.Limit); t < freeze.MinLimit || t > freeze.MaxLimit {
		return fmt.Errorf("freeze.limit: %s: want %s to %s", t, freeze.MinLimit, freeze.MaxLimit)
	}
	if c.SkipFree && c.Freeze.Off {
		return errors.New("skipFree: what is free is only known for sure while file systems are frozen; remove freeze.off, or skipFree")
	}
	if t := time.Duration(c.Scripts.Timeout); t <= 0 || t > maxTimeout {
		return fmt.Errorf("scripts.timeout: %s: want more than 0 and at most %s", t, maxTimeout)
	}
	if err := c.Limits.check(); err != nil {
		return err
	}
	if _, _, err := net.SplitHostPort(c.Metrics); c.Metrics != "" && err != nil {
		return fmt.Errorf("metrics: %q: want host:port", c.Metrics)
	}
	if _, err := proxy.Dialer(c.Proxy); err != nil {
		return err
	}
	if c.TokenFile == "" {
		c.TokenFile = "agent.token"
	}
	if c.Socket == "" {
		c.Socket = status.DefaultSocket()
	}
	for _, p := range []*string{&c.State, &c.TokenFile, &c.Socket, &c.Scripts.Directory} {
		*p = absolute(dir, *p)
	}
	for id, path := range c.Disks {
		if id == "" || path == "" {
			return fmt.Errorf("disks: %q: %q: want a backing uuid and a device or image file", id, path)
		}
		c.Disks[id] = absolute(dir, path)
	}
	return c.findInstance()
}

func absolute(dir, path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// findInstance asks the firmware for the hardware uuid that vCenter shows too.
func (c *Config) findInstance() error {
	if c.Instance != "" {
		return nil
	}
	uuid, err := firmwareUUID()
	if err != nil {
		return fmt.Errorf("instance: the firmware's uuid cannot be read (%w); run as root, or set instance to the VM's BIOS uuid", err)
	}
	c.Instance = strings.ToLower(strings.TrimSpace(uuid))
	return nil
}
