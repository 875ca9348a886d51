// Package arch holds the rules of the tree that a compiler does not know: who may
// import whom, that every package says what it is for, and that the repository
// stays readable.
package arch
