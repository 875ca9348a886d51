package spec

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/throttle"
	"drover/workflows/api"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f.yaml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func TestExamples(t *testing.T) {
	p, err := ReadPolicy("../../docs/examples/policy.yaml")
	require.NoError(t, err)
	require.Equal(t, 30*time.Second, p.CutInterval.D())
	require.Equal(t, 360*time.Hour, p.Retention.Keep)
	require.Equal(t, 2*time.Hour, p.Retention.Steps[0].Until)
	require.Equal(t, throttle.Rate(2_500_000), p.Throttle[0].Limit)
	require.Equal(t, "18:00", p.Throttle[0].Window.End)
	plan, err := ReadPlan("../../docs/examples/plan.yaml")
	require.NoError(t, err)
	require.Equal(t, "app-2", plan.Groups[1].Machines[1].Name)
	require.True(t, plan.Groups[1].Machines[1].Optional)
	require.Equal(t, &api.Location{Datastore: "ssd-2", OnlyIfGone: true}, plan.Groups[0].Machines[0].Location)
	require.Equal(t, api.SourceShutdown{Limit: api.Duration(5 * time.Minute), ThenPowerOff: true}, plan.Shutdown)
}

func TestPlansThatAreRefused(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"unknown field", "name: shop\ngroups:\n  - name: db\n    machnes: []\n", `:4:5: unknown field "machnes"`},
		{"machine twice", "name: shop\ngroups:\n  - name: db\n    machines:\n      - {name: a}\n      - {name: a}\n", ":6:16: groups[0].machines[1].name: machine a is in the plan twice"},
		{"empty group", "name: shop\ngroups:\n  - name: db\n    machines: []\n", ":4:15: groups[0].machines: group db is empty"},
		{"goal below nothing", "name: shop\nrto: -5m\ngroups:\n  - {name: db, machines: [{name: a}]}\n", ":2:6: rto: -5m0s: want 0 (no goal) or more"},
		{"no time to shut down", "name: shop\nshutdown:\n  limit: 1s\ngroups:\n  - {name: db, machines: [{name: a}]}\n", ":3:10: shutdown.limit: 1s: want 10s to 1h0m0s"},
		{"no datastore", "name: shop\ngroups:\n  - name: db\n    machines:\n      - name: a\n        location:\n          host: esx-1\n", ":7:15: groups[0].machines[0].location.datastore: want the datastore"},
		{"folder outside", "name: shop\ngroups:\n  - name: db\n    machines:\n      - name: a\n        location: {datastore: x, folder: ../y}\n", "groups[0].machines[0].location.folder: \"../y\": want folders below"},
		{"no machines at all", "name: shop\ngroups:\n  - name: db\n", "groups[0].machines: group db is empty"},
		{"missing script", "name: shop\nbefore:\n  - name: x\n    script: {args: [a]}\ngroups:\n  - {name: db, machines: [{name: a}]}\n", "before[0].script.file: \"\": want the plain name"},
		{"no action", "name: shop\nbefore:\n  - name: x\ngroups:\n  - {name: db, machines: [{name: a}]}\n", "want exactly one of script, webhook, runbook and manual"},
		{"wrong duration", "name: shop\nbefore:\n  - name: x\n    timeout: soon\n    script: {file: a}\ngroups:\n  - {name: db, machines: [{name: a}]}\n", "soon"},
		{"not YAML", "name: [\n", "f.yaml"},
		{"two documents", "name: a\n---\nname: b\n", "2 YAML documents"},
		{"empty", "", "f.yaml"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ReadPlan(write(t, c.text))
			require.ErrorContains(t, err, c.want)
			var e *Error
			require.ErrorAs(t, err, &e)
		})
	}
}

func TestThrottlesThatAreRefused(t *testing.T) {
	const policy = "name: gold\ncutInterval: 30s\nthrottle:\n  - limit: "
	for _, c := range []struct{ name, text, want string }{
		{"none", "0Mbit/s\n", ":4:12: throttle[0].limit: 0B/s: want 512kbit/s to"},
		{"no unit", "20\n", `:4:12: rate "20": want a whole number`},
		{"no zone", "1Mbit/s\n    window: {start: \"08:00\", end: \"18:00\"}\n", "throttle[0].window.timeZone: \"\": want an IANA name"},
		{"zone", "1Mbit/s\n    window: {timeZone: Mars/Base, start: \"08:00\", end: \"18:00\"}\n", ":5:24: throttle[0].window.timeZone: \"Mars/Base\": no such time zone"},
		{"failback", "1Mbit/s\nfailback:\n  cutInterval: 30s\n  throttle:\n    - limit: 1Mbit/s\n      window: {timeZone: Mars/Base, start: \"08:00\", end: \"18:00\"}\n", "f.yaml:9:26: failback.throttle[0].window.timeZone"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ReadPolicy(write(t, policy+c.text))
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestResyncWindowsThatAreRefused(t *testing.T) {
	const policy = "name: gold\ncutInterval: 30s\nresync:\n  automatic: true\n  window: "
	for text, want := range map[string]string{
		"{start: \"22:00\", end: \"06:00\"}":                                "resync.window.timeZone: want an IANA name",
		"{timeZone: Mars/Base, start: \"22:00\", end: \"06:00\"}":           ":5:22: resync.window.timeZone: \"Mars/Base\": no such time zone",
		"{timeZone: UTC, start: \"22:00\", end: \"22:00\"}":                 "resync.window.end: \"22:00\" is the start too",
		"{timeZone: UTC, start: \"22:00\", end: \"06:00\"}\n  atOnce: 65\n": "resync.atOnce: 65: want 0 (4) to 64",
	} {
		_, err := ReadPolicy(write(t, policy+text))
		require.ErrorContains(t, err, want)
	}
}

func TestConsistencyGroups(t *testing.T) {
	const policy = "name: gold\ncutInterval: 30s\nconsistencyGroup: "
	p, err := ReadPolicy(write(t, policy+"{name: shop, readyWithin: 20s}\n"))
	require.NoError(t, err)
	require.Equal(t, "shop", p.Group())
	require.Equal(t, 20*time.Second, p.ConsistencyGroup.Stream().ReadyWithin())
	require.Equal(t, time.Second, p.ConsistencyGroup.Stream().FrozenWithin())
	for text, want := range map[string]string{
		"{name: My Shop}\n":                `consistencyGroup.name: "My Shop": want 1 to 63`,
		"{readyWithin: 20s}\n":             "consistencyGroup.name",
		"{name: shop, readyWithin: 1h}\n":  ":3:45: consistencyGroup.readyWithin: 1h0m0s: want 100ms to 5m0s",
		"{name: shop, frozenWithin: 1m}\n": "consistencyGroup.frozenWithin: 1m0s: want 100ms to 30s",
		"{name: shop, members: [a]}\n":     "members",
		"{name: shop}\nfailback:\n  cutInterval: 30s\n  consistencyGroup: {name: \"\"}\n": "failback.consistencyGroup.name",
	} {
		_, err := ReadPolicy(write(t, policy+text))
		require.ErrorContains(t, err, want)
	}
}

func TestFormatIsReadAgain(t *testing.T) {
	p, err := ReadPlan("../../docs/examples/plan.yaml")
	require.NoError(t, err)
	text, err := Format(p)
	require.NoError(t, err)
	again, err := ReadPlan(write(t, string(text)))
	require.NoError(t, err, string(text))
	require.Equal(t, p, again)
	q, err := ReadPolicy("../../docs/examples/policy.yaml")
	require.NoError(t, err)
	text, err = Format(q)
	require.NoError(t, err)
	qAgain, err := ReadPolicy(write(t, string(text)))
	require.NoError(t, err, string(text))
	require.Equal(t, q, qAgain)
}
