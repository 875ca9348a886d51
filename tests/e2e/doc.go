// Package e2e drives the built programs as an operator would: the whole cycle,
// every process killed once in the middle of its work, and what must be refused.
package e2e
