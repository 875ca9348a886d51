package file

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// windowSums is how many sums a window holds: those of 32 MiB of disk.
const windowSums = 8192

// sumsWindow reads and writes a map of checksums through a part of it in memory, for
// many small accesses in order. What was written is in the file after flush. Not
// safe for concurrent use.
type sumsWindow struct {
	s        *sumsFile
	first    int64 // block of buf's first sum
	buf      []byte
	from, to int // bytes of buf that are not in the file yet
}

func (w *sumsWindow) read(first int64, dst []uint64) error {
	b, err := w.place(first, int64(len(dst)))
	if err != nil {
		return err
	}
	for i := range dst {
		dst[i] = binary.LittleEndian.Uint64(b[sumSize*i:])
	}
	return nil
}

func (w *sumsWindow) write(first int64, sums []uint64) error {
	b, err := w.place(first, int64(len(sums)))
	if err != nil {
		return err
	}
	for i, s := range sums {
		binary.LittleEndian.PutUint64(b[sumSize*i:], s)
	}
	w.mark(first, int64(len(sums)))
	return nil
}

func (w *sumsWindow) writeZeros(first, n int64) error {
	if n > windowSums/2 {
		if err := w.flush(); err != nil {
			return err
		}
		w.buf = w.buf[:0]
		return w.s.writeZeros(first, n)
	}
	b, err := w.place(first, n)
	if err != nil {
		return err
	}
	clear(b)
	w.mark(first, n)
	return nil
}

func (w *sumsWindow) mark(first, n int64) {
	from := int(first-w.first) * sumSize
	to := from + int(n)*sumSize
	if w.from == w.to {
		w.from, w.to = from, to
		return
	}
	w.from, w.to = min(w.from, from), max(w.to, to)
}

// place gives the bytes of n sums, at most windowSums, moving the window there.
func (w *sumsWindow) place(first, n int64) ([]byte, error) {
	if first < w.first || (first-w.first+n)*sumSize > int64(len(w.buf)) {
		if err := w.flush(); err != nil {
			return nil, err
		}
		if w.buf == nil {
			w.buf = make([]byte, windowSums*sumSize)
		}
		w.buf, w.first = w.buf[:windowSums*sumSize], first
		got, err := w.s.f.ReadAt(w.buf, first*sumSize)
		if err != nil && !errors.Is(err, io.EOF) {
			w.buf = w.buf[:0]
			return nil, fmt.Errorf("read checksums %s: %w", w.s.f.Name(), err)
		}
		clear(w.buf[got:])
	}
	from := (first - w.first) * sumSize
	return w.buf[from : from+n*sumSize], nil
}

// flush writes what the file does not have yet.
func (w *sumsWindow) flush() error {
	if w.from == w.to {
		return nil
	}
	if _, err := w.s.f.WriteAt(w.buf[w.from:w.to], w.first*sumSize+int64(w.from)); err != nil {
		return fmt.Errorf("write checksums %s: %w", w.s.f.Name(), spaceErr(err))
	}
	w.from, w.to = 0, 0
	return nil
}
