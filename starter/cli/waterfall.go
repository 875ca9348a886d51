package cli

import (
	"fmt"
	"io"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"

	"drover/datapath/ident"
	"drover/datapath/waterfall"
)

// pictures remembers the times of the picture before, so that --watch shows what
// happened since.
type pictures map[ident.DiskID]waterfall.Times

// since gives what was added since the picture before; all, in the first picture
// and after the stream has begun anew.
func (p pictures) since(id ident.DiskID, now waterfall.Times) waterfall.Times {
	d := now.Sub(p[id])
	p[id] = now
	if d.Chunks < 0 {
		return now
	}
	return d
}

// printWaterfall shows, for each disk, what a chunk of data waited for on average,
// and where most of the time went.
func printWaterfall(w io.Writer, lines []machineLine, before pictures) {
	t := table.NewWriter()
	t.SetOutputMirror(w)
	head := table.Row{"machine", "disk", "chunks"}
	for s := range waterfall.Stage(waterfall.Stages) {
		head = append(head, s)
	}
	t.AppendHeader(append(head, "most"))
	for _, l := range lines {
		if l.Stream == nil {
			continue
		}
		for _, d := range l.Stream.Disks {
			times := before.since(d.ID, d.Times)
			row := table.Row{l.Machine.Name, d.Name, times.Chunks}
			for _, spent := range times.Spent {
				row = append(row, perChunk(spent, times.Chunks))
			}
			worst := "-"
			if stage, percent := times.Worst(); percent > 0 {
				worst = fmt.Sprintf("%s %d %%", stage, percent)
			}
			t.AppendRow(append(row, worst))
		}
	}
	t.Render()
	_, _ = fmt.Fprintln(w, "What a chunk (up to 1 MiB) waited for in each stage, on average: docs/OPERATIONS.md says what to do about each.")
}

func perChunk(spent time.Duration, chunks int64) string {
	if chunks <= 0 || spent <= 0 {
		return "-"
	}
	d := spent / time.Duration(chunks)
	switch {
	case d >= time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d >= time.Millisecond:
		return d.Round(100 * time.Microsecond).String()
	}
	return d.Round(time.Microsecond).String()
}
