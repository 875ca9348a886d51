package api

import "fmt"

// Size gives bytes for people.
func Size(n int64) string {
	const unit, suffixes = 1024, "KMGTPE"
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, i := float64(n)/unit, 0
	for value >= unit && i < len(suffixes)-1 {
		value /= unit
		i++
	}
	return fmt.Sprintf("%.1f %ciB", value, suffixes[i])
}
