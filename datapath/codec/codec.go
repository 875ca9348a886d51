// Package codec names the ways of compressing and says what a policy may choose. It
// imports nothing, so that workflows may use it; datapath/compress does the work.
package codec

import "fmt"

// Codec is a way of encoding. The numbers are part of the formats.
type Codec uint8

// The codecs: s2 is the fastest that helps, zstd (its fastest level) saves a
// fifth more for three times the work.
const (
	None Codec = 0
	Zstd Codec = 1
	S2   Codec = 2
)

var names = [...]string{None: "none", Zstd: "zstd", S2: "s2"}

// Valid reports whether c is one of the named codecs.
func (c Codec) Valid() bool { return int(c) < len(names) }

func (c Codec) String() string {
	if !c.Valid() {
		return fmt.Sprintf("codec(%d)", uint8(c))
	}
	return names[c]
}
