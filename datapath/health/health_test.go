package health

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func well() Sample {
	return Sample{Time: time.Unix(1, 0).UTC(), CPU: 10, Memory: 20, SpoolLimit: 1000 << 20, SpoolUsed: 0, DiskFree: 5000 << 20,
		BacklogBytes: 60 << 20, DrainRate: 1 << 20, Agents: []Agent{{"web-1", time.Second}}}
}

// TestThresholds looks at both sides of every one.
func TestThresholds(t *testing.T) {
	const mib = 1 << 20
	require.Equal(t, Report{Status: OK, Time: well().Time}, Evaluate(well()))
	for _, c := range []struct {
		name   string
		change func(*Sample)
		code   string
		want   Status
		cause  string
	}{
		{"cpu at 80", func(s *Sample) { s.CPU = 80 }, "", OK, ""},
		{"cpu over 80", func(s *Sample) { s.CPU = 80.1 }, CodeCPU, Warning, "80 % busy"},
		{"cpu at 95", func(s *Sample) { s.CPU = 95 }, CodeCPU, Warning, "95 % busy"},
		{"cpu over 95", func(s *Sample) { s.CPU = 95.1 }, CodeCPU, Critical, "95 % busy"},
		{"cpu not known", func(s *Sample) { s.CPU = -1 }, "", OK, ""},
		{"memory at 80", func(s *Sample) { s.Memory = 80 }, "", OK, ""},
		{"memory over 80", func(s *Sample) { s.Memory = 80.1 }, CodeMemory, Warning, "80 % of the memory"},
		{"memory at 95", func(s *Sample) { s.Memory = 95 }, CodeMemory, Warning, ""},
		{"memory over 95", func(s *Sample) { s.Memory = 95.1 }, CodeMemory, Critical, ""},
		{"memory not known", func(s *Sample) { s.Memory = -1 }, "", OK, ""},
		{"free at 30", func(s *Sample) { s.SpoolUsed = 700 * mib }, "", OK, ""},
		{"free under 30", func(s *Sample) { s.SpoolUsed = 701 * mib }, CodeSpool, Warning, "room for 299 MiB, 30 % of its limit of 1000 MiB"},
		{"free at 25", func(s *Sample) { s.SpoolUsed = 750 * mib }, CodeSpool, Warning, ""},
		{"free under 25", func(s *Sample) { s.SpoolUsed = 751 * mib }, CodeSpool, Critical, ""},
		{"others' files at 30", func(s *Sample) { s.DiskFree = 300 * mib }, "", OK, ""},
		{"others' files under 30", func(s *Sample) { s.DiskFree = 299 * mib }, CodeSpool, Warning, "full of other things"},
		{"others' files under 25", func(s *Sample) { s.DiskFree = 249 * mib }, CodeSpool, Critical, "full of other things"},
		{"disk not known", func(s *Sample) { s.DiskFree = -1 }, "", OK, ""},
		{"drains in 30 min", func(s *Sample) { s.BacklogBytes = 1800 * mib }, "", OK, ""},
		{"drains in over 30 min", func(s *Sample) { s.BacklogBytes = 1801 * mib }, CodeBacklog, Warning, "backlog of 1.759 GiB takes 30m0s to be applied, at 1 MiB/s"},
		{"drains in 45 min", func(s *Sample) { s.BacklogBytes = 2700 * mib }, CodeBacklog, Warning, ""},
		{"drains in over 45 min", func(s *Sample) { s.BacklogBytes = 2701 * mib }, CodeBacklog, Critical, ""},
		{"drains hardly", func(s *Sample) { s.BacklogBytes, s.DrainRate = 1<<62, 1e-300 }, CodeBacklog, Critical, "1000h"},
		{"just begun", func(s *Sample) { s.DrainRate, s.Stalled = 0, 10*time.Second }, "", OK, ""},
		{"stalled for 30 min", func(s *Sample) { s.DrainRate, s.Stalled = 0, 30*time.Minute }, "", OK, ""},
		{"stalled for longer", func(s *Sample) { s.DrainRate, s.Stalled = 0, 31*time.Minute }, CodeBacklog, Warning, "nothing of the backlog of 60 MiB was applied for 31m"},
		{"stalled for over 45 min", func(s *Sample) { s.DrainRate, s.Stalled = 0, 46*time.Minute }, CodeBacklog, Critical, ""},
		{"stalled without backlog", func(s *Sample) { s.BacklogBytes, s.DrainRate, s.Stalled = 0, 0, time.Hour }, "", OK, ""},
		{"silent for 15 min", func(s *Sample) { s.Agents[0].Silent = 15 * time.Minute }, "", OK, ""},
		{"silent for longer", func(s *Sample) { s.Agents[0].Silent = 15*time.Minute + 1 }, CodeAgentSilent, Critical, "1 of 1 agents were not heard for longer than 15m0s: web-1 (15m0s)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := well()
			c.change(&s)
			r := Evaluate(s)
			require.Equal(t, c.want, r.Status)
			if c.want == OK {
				require.Empty(t, r.Findings)
				return
			}
			require.Len(t, r.Findings, 1)
			f := r.Findings[0]
			require.Equal(t, c.code, f.Code)
			require.Equal(t, c.want, f.Status)
			require.Contains(t, f.Cause, c.cause)
			require.NotEmpty(t, f.Component)
			require.NotEmpty(t, f.Action)
		})
	}
}

func TestWorstWins(t *testing.T) {
	s := well()
	s.CPU, s.Memory = 99, 85
	s.Agents = []Agent{{"a", 16 * time.Minute}, {"b", time.Hour}, {"c", 0}, {"d", 20 * time.Minute}, {"e", 30 * time.Minute}}
	r := Evaluate(s)
	require.Equal(t, Critical, r.Status)
	require.Len(t, r.Findings, 3)
	require.Contains(t, r.Findings[2].Cause, "4 of 5 agents were not heard for longer than 15m0s: b (1h0m0s) e (30m0s) d (20m0s) ...")

	s = well()
	s.Memory = 85
	r = Evaluate(s)
	require.Equal(t, Warning, r.Status)
	r.Add(Silent("ps-1", 15*time.Minute))
	require.Equal(t, Warning, r.Status)
	r.Add(Silent("ps-1", 15*time.Minute+time.Second))
	require.Equal(t, Critical, r.Status)
	r.Add(Finding{Status: Warning})
	require.Equal(t, Critical, r.Status)
	for range 2 * MaxFindings {
		r.Add(Finding{Status: Critical})
	}
	require.Len(t, r.Findings, MaxFindings)
}

func TestReportIsReadAgain(t *testing.T) {
	s := well()
	s.CPU = 99
	want := Evaluate(s)
	b, err := json.Marshal(want)
	require.NoError(t, err)
	var got Report
	require.NoError(t, json.Unmarshal(b, &got))
	require.Equal(t, want, got)
}
