// Package pageblob runs the data path with Azure Storage at its end: an agent streams
// to a process server whose cache storage and replicas are containers of an emulator,
// and a machine's disks are recovered from the account alone.
package pageblob
