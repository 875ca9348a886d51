package cli

import (
	"time"

	"drover/workflows/api"
)

// size gives bytes for people.
func size(n int64) string { return api.Size(n) }

// age gives how long ago something was, for people.
func age(now, t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := max(now.Sub(t), 0)
	if d < time.Minute {
		return d.Round(time.Second).String()
	}
	return d.Round(time.Minute).String()
}
