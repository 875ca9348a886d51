package trace

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sections are the texts of a file of testdata/kernels, by the names of the kernel's
// files.
func sections(t testing.TB, version string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata/kernels", version+".txt"))
	require.NoError(t, err)
	out := map[string]string{}
	name := ""
	for line := range strings.Lines(string(text)) {
		if head, ok := strings.CutPrefix(line, "-- "); ok {
			name = strings.TrimSuffix(strings.TrimSpace(head), " --")
			continue
		}
		out[name] += line
	}
	return out
}

// describeSample is what [tracefs.describe] gives on such a kernel.
func describeSample(t testing.TB, version string) *description {
	t.Helper()
	texts := sections(t, version)
	d := &description{events: map[uint16]*eventLayout{}}
	var err error
	d.page, err = parsePage(texts["header_page"])
	require.NoError(t, err)
	d.entry, err = parseEntry(texts["header_event"])
	require.NoError(t, err)
	for k, name := range eventNames {
		require.NoError(t, d.add(k, texts[name]), name)
	}
	return d
}

// versions have a sample each: 6.1 and 6.18 as kernels gave it, the older ones written
// after the headers of those kernels.
var versions = []string{"4.14", "4.19", "5.10", "6.1", "6.18"}

func TestKernels(t *testing.T) {
	rwbs := map[string]int{"6.18": 10}
	issues := map[string]uint16{"4.14": 892, "4.19": 1017, "5.10": 1091, "6.1": 1190, "6.18": 2104}
	for _, v := range versions {
		t.Run(v, func(t *testing.T) {
			d := describeSample(t, v)
			require.Equal(t, pageLayout{time: field{0, 8}, commit: field{8, 8}, data: 16, size: 4096}, d.page)
			stamp := uint32(31)
			if v == "4.14" {
				stamp = noKind
			}
			require.Equal(t, entryLayout{lenBits: 5, deltaBits: 27, maxData: 28, padding: 29, extend: 30, stamp: stamp}, d.entry)
			require.Equal(t, field{0, 2}, d.id)
			require.Len(t, d.events, len(eventNames))
			n := max(rwbs[v], 8)
			e := d.events[issues[v]]
			require.NotNil(t, e)
			require.Equal(t, field{8, 4}, e.dev)
			require.Equal(t, field{16, 8}, e.sector)
			require.Equal(t, field{24, 4}, e.sectors)
			require.Equal(t, field{28, 4}, e.len)
			require.Equal(t, n, e.rwbs.size)
			for id, e := range d.events {
				require.Equal(t, id, e.id)
				if e.kind != issue {
					require.Zero(t, e.len)
				}
			}
		})
	}
}

func TestDescriptionsThatAreRefused(t *testing.T) {
	good := sections(t, "6.1")
	change := func(name, from, to string) string {
		require.Contains(t, good[name], from)
		return strings.ReplaceAll(good[name], from, to)
	}
	for name, text := range map[string]string{
		`no field "commit"`:      change("header_page", "local_t commit", "local_t something"),
		"which is no number":     change("header_page", "offset:8;\tsize:8;", "offset:8;\tsize:3;"),
		"which no page has":      change("header_page", "offset:16;\tsize:4080", "offset:12;\tsize:4080"),
		"is no offset or size":   change("header_page", "size:4080", "size:4294967295"),
		"no name in the line":    "field:;offset:0;size:8;",
		"a description of 70000": strings.Repeat("x", 70000),
	} {
		_, err := parsePage(text)
		require.ErrorContains(t, err, name)
	}
	for name, text := range map[string]string{
		`describes no "padding"`: change("header_event", "padding", "wadding"),
		"is no number":           change("header_event", "== 30", "== many"),
		"which is not one word":  change("header_event", "27 bits", "26 bits"),
		"70000 bytes":            strings.Repeat("x", 70000),
	} {
		_, err := parseEntry(text)
		require.ErrorContains(t, err, name)
	}
	for name, text := range map[string]string{
		`no field "nr_sector"`: change("block_rq_issue", "nr_sector", "sectors"),
		`no field "rwbs"`:      change("block_rq_issue", "rwbs[8]", "flags[8]"),
		`no field "bytes"`:     change("block_rq_issue", "int bytes", "int length"),
		"has no number":        change("block_rq_issue", "ID: 1190", ""),
		"is no event's number": change("block_rq_issue", "ID: 1190", "ID: 70000"),
	} {
		_, _, err := parseEvent(issue, text)
		require.ErrorContains(t, err, name)
	}
	d := &description{events: map[uint16]*eventLayout{}}
	require.NoError(t, d.add(issue, good["block_rq_issue"]))
	require.ErrorContains(t, d.add(complete, good["block_rq_issue"]), "is that of another one")
	require.ErrorContains(t, d.add(complete, strings.Replace(good["block_rq_complete"], "common_type;\toffset:0", "common_type;\toffset:2", 1)), "where others have none")
}

func TestStats(t *testing.T) {
	const text = "entries: 7\noverrun: 1\ncommit overrun: 2\nbytes: 5648\noldest event ts:     0.000000\nnow ts:   759.623993\ndropped events: 4\nread events: 5\n"
	s, err := parseStats(text)
	require.NoError(t, err)
	require.Equal(t, stats{entries: 7, overrun: 1, commitOverrun: 2, dropped: 4}, s)
	require.EqualValues(t, 7, s.lost())
	_, err = parseStats(strings.Replace(text, "dropped events", "dripped events", 1))
	require.ErrorContains(t, err, `does not count "dropped events"`)
	_, err = parseStats(strings.Replace(text, "entries: 7", "entries: -7", 1))
	require.ErrorContains(t, err, "is no number of entries")
}

func TestOperations(t *testing.T) {
	for rwbs, want := range map[string]byte{
		"R": opRead, "RA": opRead, "RSM": opRead, "RAFS": opRead,
		"W": 'W', "WS": 'W', "WFS": 'W', "FWFSM": 'W', "FWS": 'W', "WSMU": 'W',
		"D": opDiscard, "DS": opDiscard, "DE": opDiscard, "FD": opDiscard,
		"F": opFlush, "FF": opFlush, "FFS": opFlush,
		"N": opOther, "NS": opOther, "FNS": opOther, "": opOther,
		"WZ": 'W', "ZA": 'Z', "ZR": 'Z', "X": 'X',
	} {
		require.Equal(t, want, operation([]byte(rwbs)), rwbs)
		require.Equal(t, want != opRead, record{op: want, sectors: 8}.changes(), rwbs)
		require.False(t, record{op: want}.changes(), rwbs)
	}
	require.True(t, record{kind: issue, op: opOther, bytes: 96}.foreign(), "SG_IO")
	require.False(t, record{kind: issue, op: opOther}.foreign(), "test unit ready")
	require.False(t, record{kind: issue, op: opOther, sectors: 8, bytes: 4096}.foreign(), "write zeroes")
	require.False(t, record{kind: issue, op: opFlush}.foreign(), "flush")
}
