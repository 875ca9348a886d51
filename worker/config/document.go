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
	"regexp"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// document is a file being checked; it collects all that is wrong with it.
type document struct {
	file     string
	dir      string
	ast      *ast.File
	problems []error
}

// load reads the file strictly into the value.
func load(file string, into any) (*document, error) {
	abs, err := filepath.Abs(file)
	if err != nil {
		return nil, fmt.Errorf("read the configuration %s: %w", file, err)
	}
	content, err := readBounded(file)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	d := &document{file: file, dir: filepath.Dir(abs)}
	if d.ast, err = parser.ParseBytes(content, 0); err != nil {
		return nil, d.located(err)
	}
	err = yaml.NewDecoder(bytes.NewReader(content), yaml.Strict()).Decode(into)
	if err != nil && !errors.Is(err, io.EOF) { // an empty file lacks everything; the checks say so
		return nil, d.located(err)
	}
	return d, nil
}

func readBounded(file string) ([]byte, error) {
	f, err := os.Open(file) //nolint:gosec // the operator names it
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if len(content) > maxFile {
		return nil, fmt.Errorf("%s: larger than %d bytes", file, maxFile)
	}
	return content, nil
}

// located gives a decoder's error as "file:line: message".
func (d *document) located(err error) error {
	var e yaml.Error
	if errors.As(err, &e) && e.GetToken() != nil {
		return fmt.Errorf("%s:%d: %s", d.file, e.GetToken().Position.Line, e.GetMessage())
	}
	return fmt.Errorf("%s: %w", d.file, err)
}

// fail notes that the value at the path is wrong. A value that is not there is
// reported at the nearest mapping that should have it.
func (d *document) fail(path, format string, args ...any) {
	field := strings.TrimPrefix(path, "$.")
	d.problems = append(d.problems, fmt.Errorf("%s:%d: %s: %s", d.file, d.line(path), field, fmt.Sprintf(format, args...)))
}

func (d *document) line(path string) int {
	for path != "$" && path != "" {
		p, err := yaml.PathString(path)
		if err != nil {
			return 1
		}
		if node, err := p.FilterFile(d.ast); err == nil && node != nil && node.GetToken() != nil {
			return node.GetToken().Position.Line
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
	return 1
}

func (d *document) err() error { return errors.Join(d.problems...) }

var nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func (d *document) name(path, value string) {
	if !nameForm.MatchString(value) {
		d.fail(path, "%q: want 1 to 63 of a-z, 0-9 and -, such as ps-1", value)
	}
}

// path checks a needed path and makes it absolute.
func (d *document) path(path string, value *string) {
	if *value == "" {
		d.fail(path, "missing; it is a path, absolute or relative to this file")
		return
	}
	d.optionalPath(value)
}

func (d *document) optionalPath(value *string) {
	if *value != "" && !filepath.IsAbs(*value) {
		*value = filepath.Join(d.dir, *value)
	}
}

// listen checks an address to listen on; its host may be empty.
func (d *document) listen(path, value string, needed bool) {
	if value == "" && !needed {
		return
	}
	if _, port, err := net.SplitHostPort(value); err != nil || port == "" {
		d.fail(path, "%q: want host:port or :port", value)
	}
}

// address checks an address to connect to.
func (d *document) address(path, value string) {
	if host, port, err := net.SplitHostPort(value); err != nil || host == "" || port == "" || port == "0" {
		d.fail(path, "%q: want host:port", value)
	}
}

func (d *document) hosts(path string, hosts []string) {
	if len(hosts) == 0 {
		d.fail(path, "missing; list the host names or IP addresses that agents reach this server by")
	}
	for i, h := range hosts {
		if h == "" || strings.ContainsAny(h, "/ ") || (strings.Contains(h, ":") && net.ParseIP(h) == nil) {
			d.fail(fmt.Sprintf("%s[%d]", path, i), "%q: want a host name or IP address without port", h)
		}
	}
}

func (d *document) https(path, value string) {
	u, err := url.Parse(value)
	if err != nil || u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" {
		d.fail(path, "%q: want https://host:port", value)
	}
}

func (d *document) urls(path string, values []string) {
	for i, v := range values {
		d.url(fmt.Sprintf("%s[%d]", path, i), v)
	}
}

// url checks a URL; the error does not repeat one that may hold a secret.
func (d *document) url(path, value string) {
	u, err := url.Parse(value)
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" {
		d.fail(path, "want a URL, such as https://host/hooks/")
	}
}

func (d *document) temporal(t Temporal) {
	d.address("$.temporal.address", t.Address)
	if t.Namespace == "" {
		d.fail("$.temporal.namespace", "empty; leave it out for \"default\"")
	}
}
