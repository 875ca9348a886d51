// Package compress encodes what is sent and stored: chunks of at most [MaxPlain]
// bytes, each by itself. A chunk that does not shrink stays as it is, so that
// encrypted or packed content costs one try and no room.
package compress

import (
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"drover/datapath/codec"
)

// MaxPlain is the largest chunk, before it is encoded.
const MaxPlain = 1 << 20

// shrink is the part of a chunk that encoding must save, or it is not worth decoding.
const shrink = 32

// ErrCorrupt is wrapped when a chunk cannot be decoded to what it should be.
var ErrCorrupt = errors.New("encoded data is damaged")

// Both are safe for concurrent use and keep what they need per running call.
var (
	encoder = sync.OnceValue(func() *zstd.Encoder {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(MaxPlain),
			zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true))
		if err != nil {
			panic(err) // the options are constants
		}
		return e
	})
	decoder = sync.OnceValue(func() *zstd.Decoder {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(MaxPlain),
			zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderLowmem(true))
		if err != nil {
			panic(err) // the options are constants
		}
		return d
	})
)

// Memory makes memory that is large enough to encode or decode any chunk.
func Memory() []byte { return make([]byte, s2.MaxEncodedLen(MaxPlain)) }

// Encode encodes a chunk into dst's memory, grown when needed. When that saves too
// little it gives plain itself and None.
func Encode(c codec.Codec, dst, plain []byte) ([]byte, codec.Codec) {
	var out []byte
	switch c {
	case codec.Zstd:
		out = encoder().EncodeAll(plain, dst[:0])
	case codec.S2:
		out = s2.Encode(dst[:cap(dst)], plain)
	default:
		return plain, codec.None
	}
	if len(out) > len(plain)-len(plain)/shrink {
		return plain, codec.None
	}
	return out, c
}

// Decode decodes a chunk of exactly size plain bytes into dst's memory, grown when
// needed; never more is allocated. With None it gives data itself.
func Decode(c codec.Codec, dst, data []byte, size int) ([]byte, error) {
	if size < 0 || size > MaxPlain {
		return nil, fmt.Errorf("%w: %d plain bytes, at most %d", ErrCorrupt, size, MaxPlain)
	}
	if c != codec.None && cap(dst) < size {
		dst = make([]byte, 0, size)
	}
	var out []byte
	var err error
	switch c {
	case codec.None:
		out = data
	case codec.Zstd:
		out, err = decoder().DecodeAll(data, dst[:0:size])
	case codec.S2:
		var n int
		if n, err = s2.DecodedLen(data); err == nil && n != size {
			err = fmt.Errorf("it has %d plain bytes", n)
		}
		if err == nil {
			out, err = s2.Decode(dst[:size], data)
		}
	default:
		err = fmt.Errorf("unknown %s", c)
	}
	if err != nil {
		return nil, fmt.Errorf("%w (%s): %w", ErrCorrupt, c, err)
	}
	if len(out) != size {
		return nil, fmt.Errorf("%w (%s): not %d plain bytes", ErrCorrupt, c, size)
	}
	return out, nil
}
