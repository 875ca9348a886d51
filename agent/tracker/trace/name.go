// Package trace is a source of changes that works on kernels without BTF: it reads the
// block layer's own trace events. They come through a ring that can overflow, which the
// ring counts; so what it says is complete, or it says that it is not. DESIGN.md tells
// why no write can be missed.
package trace

// Name is the source's name.
const Name = "trace"
