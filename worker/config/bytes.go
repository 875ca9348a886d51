package config

import (
	"encoding"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"

	"drover/workflows/api"
)

// Duration is written in Go's notation, such as 168h or 2s.
type Duration time.Duration

// D gives the time.Duration.
func (d Duration) D() time.Duration { return time.Duration(d) }

// UnmarshalYAML reads a duration and says where a wrong one stands.
func (d *Duration) UnmarshalYAML(node ast.Node) error {
	return fromText(node, (*api.Duration)(d))
}

// UnmarshalYAML reads a size and says where a wrong one stands.
func (b *Bytes) UnmarshalYAML(node ast.Node) error { return fromText(node, b) }

// fromText gives the scalar's text to the value, and the value's error the
// scalar's place.
func fromText(node ast.Node, into encoding.TextUnmarshaler) error {
	if err := into.UnmarshalText([]byte(node.GetToken().Value)); err != nil {
		return &yaml.SyntaxError{Message: err.Error(), Token: node.GetToken()}
	}
	return nil
}

// Bytes is a size, written as "2GiB", "512MiB" or a plain number of bytes.
type Bytes int64

var units = []struct {
	suffix string
	size   Bytes
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}

// UnmarshalText reads a size.
func (b *Bytes) UnmarshalText(text []byte) error {
	number, size := strings.TrimSpace(string(text)), Bytes(1)
	for _, u := range units {
		if n, ok := strings.CutSuffix(number, u.suffix); ok {
			number, size = strings.TrimSpace(n), u.size
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/int64(size) {
		return fmt.Errorf("size %q: want a whole number with KiB, MiB, GiB or TiB, such as 2GiB", text)
	}
	*b = Bytes(n) * size
	return nil
}

// String gives the size in the largest unit that needs no fraction.
func (b Bytes) String() string {
	for _, u := range units {
		if b >= u.size && b%u.size == 0 {
			return fmt.Sprintf("%d%s", b/u.size, u.suffix)
		}
	}
	return fmt.Sprintf("%dB", int64(b))
}
