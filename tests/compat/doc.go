// Package compat reads what earlier releases have stored: change sets, replica
// stores in directories and in page blobs (for which it needs the emulator), spools, caches, grants and records of comparisons.
//
// The rule: a file in testdata is never changed or removed. Whoever raises the
// version of a format adds a sample of the new one, with
//
//	go test ./tests/compat -write
//
// which writes the samples that are not there yet and touches no other.
package compat
