// Package compat reads what earlier releases have stored. A file in testdata is
// never changed or removed; a new version of a format adds one.
package compat
