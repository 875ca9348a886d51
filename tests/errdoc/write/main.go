// Command write writes docs/errors.md, to the path that is given.
package main

import (
	"fmt"
	"os"

	"drover/tests/errdoc"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: write FILE")
		os.Exit(2)
	}
	if err := os.WriteFile(os.Args[1], []byte(errdoc.Text()), 0o644); err != nil { //nolint:gosec // a document is read by all
		fmt.Fprintln(os.Stderr, "write:", err)
		os.Exit(1)
	}
}
