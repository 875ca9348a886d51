package throttle

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestUntil: a window ends by the clock on the wall, also in the nights in which that is
// set forward (2026-03-29) and back (2026-10-25).
func TestUntil(t *testing.T) {
	night := Window{TimeZone: "Europe/Berlin", Start: "22:00", End: "06:00"}
	early := Window{TimeZone: "Europe/Berlin", Start: "02:30", End: "05:00"}
	late := Window{TimeZone: "Europe/Berlin", Start: "01:00", End: "02:30"}
	friday := Window{TimeZone: "Europe/Berlin", Start: "22:00", End: "06:00", Days: []string{"fri"}}
	for _, c := range []struct {
		name   string
		window Window
		at     string
		end    string // empty: closed
	}{
		{"winter", night, "2026-01-10T21:00:00Z", "2026-01-11T05:00:00Z"},
		{"summer", night, "2026-07-10T20:00:00Z", "2026-07-11T04:00:00Z"},
		{"before", night, "2026-07-10T19:59:59Z", ""},
		{"after", night, "2026-07-11T04:00:00Z", ""},
		{"spring: an hour shorter", night, "2026-03-28T21:00:00Z", "2026-03-29T04:00:00Z"},
		{"autumn: an hour longer", night, "2026-10-24T20:00:00Z", "2026-10-25T05:00:00Z"},
		{"spring: it begins in the hour that is skipped", early, "2026-03-29T01:00:00Z", "2026-03-29T03:00:00Z"},
		{"autumn: the first of the two hours", late, "2026-10-25T00:10:00Z", "2026-10-25T00:30:00Z"},
		{"autumn: the second", late, "2026-10-25T01:10:00Z", "2026-10-25T01:30:00Z"},
		{"it started on a day of its own", friday, "2026-07-11T02:00:00Z", "2026-07-11T04:00:00Z"},
		{"it did not", friday, "2026-07-12T02:00:00Z", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			at, err := time.Parse(time.RFC3339, c.at)
			require.NoError(t, err)
			end, open, err := c.window.Until(at)
			require.NoError(t, err)
			require.Equal(t, c.end != "", open)
			if open {
				require.Equal(t, c.end, end.UTC().Format(time.RFC3339))
			}
		})
	}
	_, _, err := Window{TimeZone: "Mars/Base", Start: "22:00", End: "06:00"}.Until(time.Now())
	require.ErrorContains(t, err, "no such time zone")
}
