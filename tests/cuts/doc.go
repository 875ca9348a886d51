// Package cuts proves that a recovery point is the disk: real devices are written to in
// all the ways there are while the real agent replicates them, and at each cut all of the
// device is compared with its replica.
package cuts
