// Package private makes folders that nobody enters but those who may do anything on the
// machine anyway: the agent's keys and notes are in them.
package private
