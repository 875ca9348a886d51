package trace

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/tests/fuzz"
)

// maker makes pages as the kernel does.
type maker struct {
	d    *description
	raw  []byte
	used int
	last uint64
}

func (d *description) newPage(start uint64) *maker {
	m := &maker{d: d, raw: make([]byte, d.page.size), last: start}
	binary.NativeEndian.PutUint64(m.raw[d.page.time.offset:], start)
	return m
}

func (m *maker) word(w uint32) *maker {
	binary.NativeEndian.PutUint32(m.raw[m.d.page.data+m.used:], w)
	m.used += 4
	return m
}

// entry puts a kind and a delta into one word.
func (m *maker) entry(kind, delta uint32) *maker {
	return m.word(kind | delta<<m.d.entry.lenBits)
}

// event puts data, with time as the kernel does.
func (m *maker) event(at uint64, data []byte) *maker {
	delta := at - m.last
	if delta >= 1<<m.d.entry.deltaBits {
		m.entry(m.d.entry.extend, uint32(delta&(1<<m.d.entry.deltaBits-1))).word(uint32(delta >> m.d.entry.deltaBits))
		delta = 0
	}
	m.last = at
	data = append(bytes.Clone(data), make([]byte, -len(data)&3)...)
	if len(data)/4 <= int(m.d.entry.maxData) {
		m.entry(uint32(len(data)/4), uint32(delta))
	} else {
		m.entry(0, uint32(delta)).word(uint32(len(data)) + 4)
	}
	copy(m.raw[m.d.page.data+m.used:], data)
	m.used += len(data)
	return m
}

func (m *maker) done(flags uint64) []byte {
	binary.NativeEndian.PutUint64(m.raw[m.d.page.commit.offset:], uint64(m.used)|flags)
	return m.raw
}

type timed struct {
	at   uint64
	data []byte
}

func walk(d *description, raw []byte) (all []timed, err error) {
	p, err := d.page.open(d.entry, raw)
	if err != nil {
		return nil, err
	}
	for {
		at, data, err := p.next()
		if err != nil || data == nil {
			return all, err
		}
		all = append(all, timed{at, bytes.Clone(data)})
	}
}

func TestPage(t *testing.T) {
	small, large := []byte("a small event..."), bytes.Repeat([]byte("long"), 100)
	const start = 1 << 40
	for _, v := range versions {
		d := describeSample(t, v)
		m := d.newPage(start).event(start, small).event(start+5, large).event(start+1<<33+7, small)
		want := []timed{{start, small}, {start + 5, large}, {start + 1<<33 + 7, small}}
		m.entry(d.entry.padding, 2).word(8).word(0) // taken back
		m.last += 2
		m.event(m.last+1, small)
		want = append(want, timed{m.last, small})
		if d.entry.stamp != noKind {
			const later = start + 1<<50 + 99
			m.entry(d.entry.stamp, later&(1<<27-1)).word(later >> 27)
			m.last = later
			m.event(later+1, small)
			want = append(want, timed{later + 1, small})
		}
		m.entry(d.entry.padding, 0).word(0xffffffff).word(0xffffffff) // nothing follows
		got, err := walk(d, m.done(0))
		require.NoError(t, err)
		require.Equal(t, want, got)
		p, err := d.page.open(d.entry, m.raw)
		require.NoError(t, err)
		require.False(t, p.missed)
		n, err := p.count()
		require.NoError(t, err)
		require.EqualValues(t, len(want), n)
		_, first, err := p.next()
		require.NoError(t, err)
		require.Equal(t, small, first, "counting does not move it")
	}
}

func TestMissedEvents(t *testing.T) {
	d := describeSample(t, "6.1")
	p, err := d.page.open(d.entry, d.newPage(1).event(1, make([]byte, 8)).done(missedEvents|missedStored))
	require.NoError(t, err)
	require.True(t, p.missed)
	n, err := p.count()
	require.NoError(t, err)
	require.EqualValues(t, 1, n)
}

// TestAbsoluteTime passes a stamp whose highest bits are those of the page, and one
// where they have changed since.
func TestAbsoluteTime(t *testing.T) {
	d := describeSample(t, "6.1")
	const high = uint64(3) << 59
	for _, at := range []uint64{high + 1<<58, high + 5} {
		start := high + 1
		if at == high+5 {
			start = high - 1 // one below: 2<<59 and all ones
		}
		m := d.newPage(start).entry(d.entry.stamp, uint32(at&(1<<27-1))).word(uint32(at >> 27))
		m.last = at
		got, err := walk(d, m.event(at+3, make([]byte, 4)).done(0))
		require.NoError(t, err)
		require.Equal(t, at+3, got[0].at)
	}
}

func TestDamagedPages(t *testing.T) {
	d := describeSample(t, "6.1")
	for name, raw := range map[string][]byte{
		"short":              make([]byte, 100),
		"commit":             d.newPage(1).done(5000),
		"half a word":        d.newPage(1).done(3),
		"data beyond":        d.newPage(1).entry(4, 0).done(0),
		"length beyond":      d.newPage(1).entry(0, 0).word(4000).done(0),
		"length too short":   d.newPage(1).entry(0, 0).word(4).done(0),
		"length missing":     d.newPage(1).entry(0, 0).done(0),
		"huge length":        d.newPage(1).entry(0, 0).word(0xffffffff).done(0),
		"extend alone":       d.newPage(1).entry(30, 1).done(0),
		"padding alone":      d.newPage(1).entry(29, 1).done(0),
		"padding beyond":     d.newPage(1).entry(29, 1).word(5000).done(0),
		"padding of nothing": d.newPage(1).entry(29, 1).word(0).done(0),
	} {
		_, err := walk(d, raw)
		require.ErrorIs(t, err, errPage, name)
	}
	_, err := walk(describeSample(t, "4.14"), d.newPage(1).entry(31, 1).word(1).done(0))
	require.ErrorContains(t, err, "unknown kind 31")
}

// eventBytes makes an event as the kernel describes it.
func (d *description) eventBytes(r record, rwbs string) []byte {
	for _, e := range d.events {
		if e.kind != r.kind {
			continue
		}
		b := make([]byte, (e.least+3)/4*4)
		binary.NativeEndian.PutUint16(b[d.id.offset:], e.id)
		binary.NativeEndian.PutUint32(b[e.dev.offset:], r.dev)
		binary.NativeEndian.PutUint64(b[e.sector.offset:], r.sector)
		binary.NativeEndian.PutUint32(b[e.sectors.offset:], uint32(r.sectors))
		copy(b[e.rwbs.offset:e.rwbs.end()], rwbs)
		if e.len.size > 0 {
			binary.NativeEndian.PutUint32(b[e.len.offset:], uint32(r.bytes))
		}
		return b
	}
	panic("no such event")
}

func TestDecode(t *testing.T) {
	for _, v := range versions {
		d := describeSample(t, v)
		for k := range eventNames {
			want := record{kind: k, dev: number(8, 16), sector: 1 << 33, sectors: 256, op: 'W'}
			if k == issue {
				want.bytes = 131072
			}
			data := d.eventBytes(want, "FWFSM")
			got, ok, err := d.decode(data)
			require.NoError(t, err)
			require.True(t, ok)
			require.Equal(t, want, got)
			_, _, err = d.decode(data[:len(data)-8])
			require.ErrorIs(t, err, errPage)
		}
		_, ok, err := d.decode(make([]byte, 64))
		require.NoError(t, err)
		require.False(t, ok, "an event of somebody else")
		_, _, err = d.decode([]byte{1})
		require.ErrorIs(t, err, errPage)
	}
}

// TestRealPage reads a page as a kernel 6.18 gave it: of writes of 1 to 8 sectors at
// the sectors 1000, 2000, ... each with a read between, and a discard at the end.
func TestRealPage(t *testing.T) {
	raw, err := os.ReadFile("testdata/page-6.18")
	require.NoError(t, err)
	d := describeSample(t, "6.18")
	all, err := walk(d, raw)
	require.NoError(t, err)
	var got []record
	for i, e := range all {
		r, ok, err := d.decode(e.data)
		require.NoError(t, err)
		require.True(t, ok)
		if i > 0 {
			require.GreaterOrEqual(t, e.at, all[i-1].at)
		}
		got = append(got, r)
	}
	n := 0
	for i := range uint64(8) {
		for _, k := range []kind{issue, complete} {
			require.Equal(t, k, got[n].kind)
			require.EqualValues(t, 'W', got[n].op)
			require.Equal(t, 1000*(i+1), got[n].sector)
			require.Equal(t, i+1, got[n].sectors)
			n++
		}
	}
	require.EqualValues(t, opDiscard, got[n].op)
	require.EqualValues(t, 16000, got[n].sector)
	require.EqualValues(t, 64, got[n].sectors)
}

// FuzzPage takes anything for a page of a kernel.
func FuzzPage(f *testing.F) {
	var all []*description
	for _, v := range versions {
		all = append(all, describeSample(f, v))
	}
	d := all[0]
	event := d.eventBytes(record{kind: issue, dev: 7 << minorBits, sector: 8, sectors: 8, bytes: 4096}, "WS")
	for name, m := range map[string]*maker{
		"empty":   d.newPage(1),
		"events":  d.newPage(1).event(2, event).event(1<<40, event),
		"long":    d.newPage(1).event(2, make([]byte, 200)),
		"padding": d.newPage(1).entry(29, 1).word(8).word(0).entry(29, 0),
		"stamp":   d.newPage(1).entry(31, 7).word(1<<30).entry(1, 0).word(0),
	} {
		raw := m.done(0)
		fuzz.Seed(f, name, raw[:d.page.data+m.used], byte(0))
	}
	real, err := os.ReadFile(filepath.Join("testdata", "page-6.18"))
	require.NoError(f, err)
	fuzz.Seed(f, "real", bytes.TrimRight(real, "\x00"), byte(4))
	f.Fuzz(func(t *testing.T, b []byte, version byte) {
		d := all[int(version)%len(all)]
		raw := make([]byte, d.page.size)
		copy(raw, b)
		fuzz.Alloc(t, 0, func() {
			p, err := d.page.open(d.entry, raw)
			fuzz.Kind(t, err, errPage)
			if err != nil {
				return
			}
			counted, bad := p.count()
			fuzz.Kind(t, bad, errPage)
			for n := uint64(0); ; n++ {
				_, data, err := p.next()
				if err != nil || data == nil {
					require.Equal(t, counted, n)
					require.Equal(t, bad, err)
					return
				}
				require.LessOrEqual(t, n, uint64(d.page.size/4))
				if _, _, err := d.decode(data); err != nil {
					require.True(t, errors.Is(err, errPage))
				}
			}
		})
	})
}

// FuzzDescriptions takes anything for what the kernel says of its trace.
func FuzzDescriptions(f *testing.F) {
	for _, v := range []string{"4.14", "6.18"} {
		for name, text := range sections(f, v) {
			fuzz.Seed(f, v+"-"+name, text)
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		fuzz.Alloc(t, 64*len(text), func() {
			if p, err := parsePage(text); err == nil {
				require.LessOrEqual(t, p.size, 2*maxPage)
				_, err := p.open(entryLayout{}, make([]byte, p.size))
				fuzz.Kind(t, err, errPage)
			}
			if e, err := parseEntry(text); err == nil {
				require.EqualValues(t, payloadBits, e.lenBits+e.deltaBits)
			}
			if e, id, err := parseEvent(issue, text); err == nil {
				_, err := e.decode(make([]byte, max(e.least, id.end())))
				require.NoError(t, err)
			}
			_, _ = parseStats(text)
		})
	})
}
