// Package spec reads policies and plans from YAML files. Reading is strict: an
// unknown field or a wrong value is refused with file, line and reason, before
// anything is started.
package spec

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"drover/datapath/throttle"
	"drover/workflows/api"
)

// MaxFile bounds a file.
const MaxFile = 1 << 20

// Problem is one thing that is wrong in a file.
type Problem struct {
	File         string
	Line, Column int // 0: not known
	Reason       string
}

func (p Problem) String() string {
	if p.Line == 0 {
		return p.File + ": " + p.Reason
	}
	return fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Column, p.Reason)
}

// Error is a file that was refused, with all that is wrong in it.
type Error struct{ Problems []Problem }

func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// ReadPolicy reads and checks a policy.
func ReadPolicy(path string) (api.Policy, error) {
	var p api.Policy
	err := read(path, &p, func() []api.FieldError {
		wrong := append(api.ValidateNewPolicy(p), zonesOf("", p)...)
		if p.Failback != nil {
			wrong = append(wrong, zonesOf("failback.", *p.Failback)...)
		}
		return wrong
	})
	return p, err
}

// zonesOf gives the time zones of a policy that do not exist.
func zonesOf(at string, p api.Policy) []api.FieldError {
	out := zones(at+"throttle", p.Throttle)
	if w := p.Resync.Window; w.TimeZone != "" {
		for _, f := range zones("", []throttle.Rule{{Window: &w}}) {
			out = append(out, api.FieldError{Path: at + "resync.window.timeZone", Reason: f.Reason})
		}
	}
	return out
}

// zones gives the time zones that do not exist, which workflows cannot look up.
func zones(at string, rules []throttle.Rule) []api.FieldError {
	var out []api.FieldError
	for _, p := range throttle.CheckZones(rules) {
		out = append(out, api.FieldError{Path: at + p.Path, Reason: p.Reason})
	}
	return out
}

// ReadPlan reads and checks a recovery plan.
func ReadPlan(path string) (api.Plan, error) {
	var p api.Plan
	err := read(path, &p, func() []api.FieldError { return api.ValidatePlan(p) })
	return p, err
}

// Locate gives an error that says where in the file each of the fields is; nil when
// there are none.
func Locate(path string, wrong []api.FieldError) error {
	if len(wrong) == 0 {
		return nil
	}
	file, err := parser.ParseFile(path, 0)
	if err != nil || len(file.Docs) == 0 {
		return fmt.Errorf("%s: %w", path, wrong[0])
	}
	out := &Error{}
	for _, f := range wrong {
		line, column := place(file.Docs[0].Body, f.Path)
		out.Problems = append(out.Problems, Problem{path, line, column, f.Error()})
	}
	return out
}

func read(path string, into any, validate func() []api.FieldError) error {
	info, err := os.Stat(path)
	if err == nil && info.Size() > MaxFile {
		err = fmt.Errorf("%s has %d bytes, at most %d", path, info.Size(), MaxFile)
	}
	if err != nil {
		return err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		return &Error{[]Problem{problem(path, err)}}
	}
	if len(file.Docs) != 1 || file.Docs[0].Body == nil {
		return &Error{[]Problem{{File: path, Reason: fmt.Sprintf("%d YAML documents, want one", len(file.Docs))}}}
	}
	if err := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict(), yaml.DisallowUnknownField()).Decode(into); err != nil {
		p := problem(path, err)
		if p.Line == 0 {
			p.Line, p.Column = placeOfValue(file.Docs[0].Body, p.Reason)
		}
		return &Error{[]Problem{p}}
	}
	return Locate(path, validate())
}

// problem takes the place and the reason out of the library's error.
func problem(path string, err error) Problem {
	var e yaml.Error
	if !errors.As(err, &e) {
		return Problem{File: path, Reason: err.Error()}
	}
	p := Problem{File: path, Reason: e.GetMessage()}
	if t := e.GetToken(); t != nil && t.Position != nil {
		p.Line, p.Column = t.Position.Line, t.Position.Column
	}
	return p
}

// placeOfValue finds the first value that the reason quotes: a type's own decoder
// says what is wrong, but not where.
func placeOfValue(root ast.Node, reason string) (line, column int) {
	for _, kind := range []ast.NodeType{ast.StringType, ast.IntegerType, ast.FloatType} {
		for _, n := range ast.Filter(kind, root) {
			if v := n.GetToken().Value; v != "" && strings.Contains(reason, strconv.Quote(v)) {
				return position(n)
			}
		}
	}
	return 0, 0
}

// place finds the line of a field such as "groups[1].machines[0].name", or of the
// nearest thing around it that is in the file.
func place(root ast.Node, field string) (line, column int) {
	line, column = position(root)
	for field != "" {
		if p, err := yaml.PathString("$." + field); err == nil {
			if node, err := p.FilterNode(root); err == nil && node != nil {
				return position(node)
			}
		}
		cut := strings.LastIndexAny(field, ".[")
		if cut < 0 {
			break
		}
		field = field[:cut]
	}
	return line, column
}

func position(n ast.Node) (line, column int) {
	if n == nil || n.GetToken() == nil || n.GetToken().Position == nil {
		return 0, 0
	}
	// A sequence's or mapping's own token is inside it; its first is close enough.
	at := n.GetToken().Position
	return at.Line, at.Column
}

// Format gives a policy or plan as the file it can be read from again.
func Format(v any) ([]byte, error) { return yaml.MarshalWithOptions(v, yaml.UseJSONMarshaler()) }
