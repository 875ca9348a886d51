package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"

	"drover/tests/lab"
)

// bytes gives a size for people.
func bytes(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, suffix := float64(n)/unit, 0
	for value >= unit && suffix < len("KMGT")-1 {
		value /= unit
		suffix++
	}
	return fmt.Sprintf("%.1f %ciB", value, "KMGT"[suffix])
}

// print shows what a command printed.
func (d *demo) print(out []byte) {
	for line := range strings.Lines(strings.TrimRight(string(out), "\n")) {
		fmt.Print("        " + line)
	}
	fmt.Println()
}

// watch waits for the machines and shows the progress of each disk meanwhile: as
// bars that are redrawn on a terminal, as a line now and then elsewhere.
func (d *demo) watch(ctx context.Context, limit time.Duration, what string, ready func(map[string]lab.MachineLine) (bool, error)) (map[string]lab.MachineLine, error) {
	screen := &screen{terminal: isTerminal(os.Stdout)}
	return d.WaitStatus(ctx, limit, what, func(status map[string]lab.MachineLine) (bool, error) {
		screen.draw(d.progress(status))
		return ready(status)
	})
}

// progress is one line per disk that a base pass is working on.
func (d *demo) progress(status map[string]lab.MachineLine) []string {
	var lines []string
	for _, name := range names {
		m, ok := status[name]
		if !ok || m.Stream == nil {
			continue
		}
		for _, disk := range m.Stream.Disks {
			part := 0.0
			if disk.Size > 0 {
				part = min(float64(disk.Done)/float64(disk.Size), 1)
			}
			if m.Stream.Complete {
				part = 1
			}
			const width = 30
			full := int(part * width)
			lines = append(lines, fmt.Sprintf("%-6s %-12s %s%s %5.1f %%  %s sent, %s", name, disk.Name,
				strings.Repeat("█", full), strings.Repeat("░", width-full), 100*part, bytes(disk.Bytes), m.Machine.State))
		}
	}
	return lines
}

// screen shows lines that change.
type screen struct {
	terminal bool
	drawn    int
	last     time.Time
}

const plainEvery = 2 * time.Second

func (s *screen) draw(lines []string) {
	if !s.terminal {
		if time.Since(s.last) < plainEvery || len(lines) == 0 {
			return
		}
		s.last = time.Now()
		s.drawn = 0
	}
	if s.drawn > 0 {
		fmt.Printf("\033[%dA", s.drawn)
	}
	for _, line := range lines {
		if s.terminal {
			fmt.Print("\033[2K")
		}
		fmt.Println("        " + line)
	}
	s.drawn = len(lines)
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// table ends the demo: what each machine cost, and whether it is proven.
func (d *demo) table() {
	t := table.NewWriter()
	t.SetOutputMirror(os.Stdout)
	t.AppendHeader(table.Row{"machine", "disks", "initial", "resync", "reprotect", "re-enable", "RPO", "RTO", "failback RTO", "points proven", "verdict"})
	for _, m := range d.report.Machines {
		t.AppendRow(table.Row{
			m.Name, fmt.Sprintf("%d, %s", m.Disks, bytes(m.DiskBytes)), moved(m.Initial), moved(m.Resync), moved(m.Reprotect), moved(m.Reenable),
			m.RPO.D().Round(time.Millisecond), m.RTO.D().Round(100 * time.Millisecond), m.FailbackRTO.D().Round(100 * time.Millisecond), m.points(), m.Verdict,
		})
	}
	fmt.Println()
	t.Render()
	fmt.Printf("%.0f s in all; proven: %t; report: %s\n", d.report.Seconds, d.report.Proven, d.Path("report.json"))
}

// addresses says how to look around.
func (d *demo) addresses() {
	fmt.Printf(`
Everything is up. Temporal UI: http://%s   Ctrl-C ends it. In another terminal:

    export TEMPORAL_ADDRESS=%s PATH=%s:$PATH
    drover status

`, d.UIAddress, d.TemporalAddress, d.Bin)
}
