package release

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]number{
		"1.2.0": {1, 2}, "v1.2.3": {1, 2}, "v1.12.0-5-gabcdef0": {1, 12}, "v1.2.0-5-gabcdef0-dirty": {1, 2}, "1.2.0+5.gabcdef0": {1, 2}, "0.9.1": {0, 9},
		"v1.2.1-0.20261130030000-8eb91e5abcde+dirty": {1, 2}, // what Go's own stamp says after a tag
	} {
		n, ok := parse(text)
		require.True(t, ok, text)
		require.Equal(t, want, n, text)
	}
	for _, text := range []string{"", "unknown", "(devel)", "test", "8eb91e5", "8eb91e5-dirty", "0.0.0", "v0.0.0-20261130030000-8eb91e5abcde", "1.2", "1.2.x", "v1.2.0 evil",
		"1.2.0\n", "-1.2.0", "1.2.0-ö", "100000.1.0", "1.100000.0"} {
		_, ok := parse(text)
		require.False(t, ok, text)
	}
}

func TestTakes(t *testing.T) {
	last := map[int]int{1: 7, 2: 0}
	const older, newer, fine = "upgrade the agent", "upgrade the servers first", ""
	for _, c := range []struct{ server, agent, want string }{
		{"1.6.0", "1.6.0", fine}, {"1.6.0", "1.6.9", fine}, {"1.6.9", "1.6.0", fine}, {"v1.6.0", "1.6.0+3.gabc", fine},
		{"1.6.0", "1.5.0", fine}, {"1.6.0", "1.2.0", fine}, {"1.6.0", "1.1.9", older}, {"1.6.0", "1.0.0", older}, {"1.6.0", "0.9.0", older},
		{"1.6.0", "1.7.0", newer}, {"1.6.0", "2.0.0", newer}, {"1.3.0", "1.0.0", fine},
		{"2.0.0", "1.7.0", fine}, {"2.0.0", "1.4.0", fine}, {"2.0.0", "1.3.9", older}, {"2.0.0", "1.8.0", older},
		{"3.1.0", "2.0.0", fine}, {"3.1.0", "1.7.0", fine}, {"3.1.0", "1.6.0", fine}, {"3.1.0", "1.5.0", older}, {"4.0.0", "3.1.0", older}, {"3.0.0", "4.0.0", newer},
		// Nothing to compare.
		{"1.6.0", "", fine}, {"1.6.0", "unknown", fine}, {"1.6.0", "8eb91e5-dirty", fine}, {"", "1.0.0", fine}, {"(devel)", "9.0.0", fine}, {"0.0.0", "1.0.0", fine},
	} {
		err := takes(c.server, c.agent, last)
		if c.want == fine {
			require.NoError(t, err, "%s takes %s", c.server, c.agent)
			continue
		}
		require.ErrorContains(t, err, c.want, "%s and %s", c.server, c.agent)
	}
	require.ErrorContains(t, Takes("1.6.0", "1.1.0"), "the agent is of release 1.1, more than 4 minor releases older than the server's 1.6")
}
