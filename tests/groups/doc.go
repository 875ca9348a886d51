// Package groups holds what consistency groups promise, with real ext4 file systems on
// real block devices that are really frozen: a point of a round is one moment of all
// machines, whoever is slow, hangs or is killed.
package groups
