// Package kill kills a process that holds an agent and a server at every place that
// package failpoint names, and checks that a new one recovers by itself and that
// nothing is lost that was told before. It needs the tag failpoint: make kill-matrix.
package kill
