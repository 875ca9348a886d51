// Package tracking proves that change tracking misses nothing under load: fio writes to
// a real block device in several patterns, with and without a file system, while every
// processor and a second disk are busy, and the tracker copies what changed. After every
// round the copy is compared with the device, all of it. `make tracking` runs it for a
// minute with each source and measures what a source costs; `make soak` for half an hour.
package tracking
