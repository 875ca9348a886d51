// Package soak runs a server process with many streams for an hour, and the agents of
// other processes, and looks whether their memory stays where it is.
package soak
