// Package scale plays a site of many machines on the embedded Temporal server: their
// entities as they are, several workers of which one is killed, and everything outside
// of Temporal replaced by something that answers at once. `make scale` measures with it.
package scale
