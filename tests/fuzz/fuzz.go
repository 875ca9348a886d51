// Package fuzz has what the fuzz targets beside the decoders share: a measure of
// what a decoder allocates, and the files of their first inputs. The program in
// run finds and runs all targets.
package fuzz

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

var seeds = flag.Bool("seeds", false, "write the fuzz targets' first inputs that testdata/fuzz does not have yet")

// Slack is what a decoder may allocate beyond its bound: texts of errors, and what
// the test itself needs.
const Slack = 256 << 10

// Alloc runs f and fails when it allocated more than limit bytes and [Slack].
func Alloc(t testing.TB, limit int, f func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > uint64(limit)+Slack {
		t.Fatalf("%d bytes were allocated, at most %d are allowed", got, limit+Slack)
	}
}

// Kind fails unless the error is nil or one of the kinds.
func Kind(t testing.TB, err error, kinds ...error) {
	t.Helper()
	for _, k := range kinds {
		if errors.Is(err, k) {
			return
		}
	}
	if err != nil {
		t.Fatalf("an error of no known kind: %v", err)
	}
}

// Seed adds a first input. With the flag -seeds it is also written to testdata,
// where it stays as it was when the encoders change.
func Seed(f *testing.F, name string, args ...any) {
	f.Helper()
	f.Add(args...)
	if !*seeds {
		return
	}
	path := filepath.Join("testdata", "fuzz", f.Name(), name)
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return
	}
	var out strings.Builder
	out.WriteString("go test fuzz v1\n")
	for _, a := range args {
		switch a.(type) {
		case []byte, string:
			fmt.Fprintf(&out, "%T(%q)\n", a, a)
		default:
			fmt.Fprintf(&out, "%T(%v)\n", a, a)
		}
	}
	text := strings.ReplaceAll(out.String(), "[]uint8(", "[]byte(")
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		f.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		f.Fatal(err)
	}
}
