// Package model plays random lives of a protected machine, with agent and server as
// they are, over a line that breaks and a file system that loses power, and compares
// every recovery point with a plain copy of the disks.
package model
