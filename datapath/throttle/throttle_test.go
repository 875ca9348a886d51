package throttle

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestRate(t *testing.T) {
	for text, want := range map[string]Rate{
		"512kbit/s": 64_000, "20Mbit/s": 2_500_000, "1 Gbit/s": 125_000_000,
		"64KiB/s": 64 << 10, "4MiB/s": 4 << 20, "1GiB/s": 1 << 30, "64001B/s": 64_001, "0Mbit/s": 0,
	} {
		var r Rate
		require.NoError(t, r.UnmarshalText([]byte(text)), text)
		require.Equal(t, want, r, text)
		var again Rate
		require.NoError(t, again.UnmarshalText([]byte(r.String())), r.String())
		require.Equal(t, r, again)
	}
	for _, text := range []string{"", "20", "20Mbit", "-1Mbit/s", "1.5Mbit/s", "20MB/s", "99999999999999Gbit/s", "Mbit/s"} {
		var r Rate
		require.ErrorContains(t, r.UnmarshalText([]byte(text)), "want a whole number", text)
	}
	b, err := json.Marshal(Rule{Limit: 2_500_000})
	require.NoError(t, err)
	require.JSONEq(t, `{"limit":"20Mbit/s"}`, string(b))
}

func rule(limit Rate, zone, start, end string, days ...string) Rule {
	return Rule{Limit: limit, Window: &Window{TimeZone: zone, Start: start, End: end, Days: days}}
}

func TestCheck(t *testing.T) {
	require.Empty(t, Check([]Rule{{Limit: MinRate}, {Limit: MaxRate}, rule(MinRate, "Europe/Berlin", "22:00", "06:00", "mon")}))
	for name, c := range map[string]struct {
		rule         Rule
		path, reason string
	}{
		"zero":     {Rule{}, "[1].limit", "to stop a machine use drover pause"},
		"too low":  {Rule{Limit: MinRate - 1}, "[1].limit", "want 512kbit/s"},
		"too high": {Rule{Limit: MaxRate + 1}, "[1].limit", "1000Gbit/s"},
		"no zone":  {rule(MinRate, "", "08:00", "18:00"), "[1].window.timeZone", "want an IANA name"},
		"zone":     {rule(MinRate, "../etc/passwd", "08:00", "18:00"), "[1].window.timeZone", "want an IANA name"},
		"start":    {rule(MinRate, "UTC", "8 o'clock", "18:00"), "[1].window.start", "want a time such as 22:00"},
		"end":      {rule(MinRate, "UTC", "08:00", "24:00"), "[1].window.end", "want a time such as 22:00"},
		"same":     {rule(MinRate, "UTC", "08:00", "08:00"), "[1].window.end", "leave the window out"},
		"day":      {rule(MinRate, "UTC", "08:00", "09:00", "mon", "Tuesday"), "[1].window.days[1]", "want mon, tue"},
	} {
		t.Run(name, func(t *testing.T) {
			rules := []Rule{{Limit: MinRate}, c.rule}
			found := Check(rules)
			require.Len(t, found, 1)
			require.Equal(t, c.path, found[0].Path)
			require.Contains(t, found[0].Reason, c.reason)
			_, err := Compile(rules)
			require.ErrorContains(t, err, "throttle"+c.path)
		})
	}
	many := make([]Rule, MaxRules+1)
	for i := range many {
		many[i].Limit = MinRate
	}
	require.Len(t, Check(many), 1)
	unknown := []Rule{rule(MinRate, "Europe/Atlantis", "08:00", "18:00")}
	require.Empty(t, Check(unknown), "workflows cannot look it up")
	_, err := Compile(unknown)
	require.ErrorContains(t, err, "[0].window.timeZone")
	require.ErrorContains(t, err, "no such time zone")
}

func TestAt(t *testing.T) {
	const low, mid, high = Rate(1e6), Rate(2e6), Rate(3e6)
	office := rule(mid, "Europe/Berlin", "08:00", "18:00", "mon", "tue", "wed", "thu", "fri")
	night := rule(low, "Europe/Berlin", "22:00", "06:00", "fri")
	midnight := rule(mid, "UTC", "20:00", "00:00")
	skipped := rule(mid, "Europe/Berlin", "02:15", "04:00")
	twice := rule(mid, "Europe/Berlin", "01:00", "02:30")
	for _, c := range []struct {
		name  string
		rules []Rule
		at    string
		want  Rate
	}{
		{"none", nil, "2026-03-02T12:00:00Z", Unlimited},
		{"always", []Rule{{Limit: high}}, "2026-03-02T12:00:00Z", high},
		{"begins", []Rule{office}, "2026-03-02T07:00:00Z", mid},
		{"just before", []Rule{office}, "2026-03-02T06:59:59Z", Unlimited},
		{"last second", []Rule{office}, "2026-03-02T16:59:59Z", mid},
		{"end is not in it", []Rule{office}, "2026-03-02T17:00:00Z", Unlimited},
		{"summer is an hour earlier", []Rule{office}, "2026-07-06T06:00:00Z", mid},
		{"Sunday", []Rule{office}, "2026-03-01T12:00:00Z", Unlimited},
		{"Friday night", []Rule{night}, "2026-03-06T21:30:00Z", low},
		{"goes on on Saturday", []Rule{night}, "2026-03-07T04:59:59Z", low},
		{"ends on Saturday", []Rule{night}, "2026-03-07T05:00:00Z", Unlimited},
		{"Saturday has none", []Rule{night}, "2026-03-07T21:30:00Z", Unlimited},
		{"nor Friday morning", []Rule{night}, "2026-03-06T01:00:00Z", Unlimited},
		{"until midnight", []Rule{midnight}, "2026-03-02T23:59:59Z", mid},
		{"not after", []Rule{midnight}, "2026-03-03T00:00:00Z", Unlimited},
		{"the lowest counts", []Rule{{Limit: high}, office, {Limit: low}}, "2026-03-02T12:00:00Z", low},
		{"the lowest that applies", []Rule{night, {Limit: high}, office}, "2026-03-02T12:00:00Z", mid},
		// 29 March 2026: 02:00 becomes 03:00 at 01:00Z.
		{"before the skipped hour", []Rule{skipped}, "2026-03-29T00:59:59Z", Unlimited},
		{"begins after the skipped hour", []Rule{skipped}, "2026-03-29T01:00:00Z", mid},
		{"ends on time", []Rule{skipped}, "2026-03-29T02:00:00Z", Unlimited},
		// 25 October 2026: 03:00 becomes 02:00 at 01:00Z.
		{"02:15 the first time", []Rule{twice}, "2026-10-25T00:15:00Z", mid},
		{"02:45 the first time", []Rule{twice}, "2026-10-25T00:45:00Z", Unlimited},
		{"02:15 the second time", []Rule{twice}, "2026-10-25T01:15:00Z", mid},
		{"02:45 the second time", []Rule{twice}, "2026-10-25T01:45:00Z", Unlimited},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			s, err := Compile(c.rules)
			require.NoError(t, err)
			at, err := time.Parse(time.RFC3339, c.at)
			require.NoError(t, err)
			require.Equal(t, c.want, s.At(at))
		})
	}
}
