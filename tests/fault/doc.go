// Package fault holds the real agent's sessions and the real server, over real TLS, to
// what they promise on bad lines and against hostile peers. docs/PROMISES.md has the
// table of cases; each test has the number of its case.
package fault
