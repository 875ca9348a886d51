package codec

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNames(t *testing.T) {
	require.Equal(t, []string{"none", "zstd", "s2"}, []string{None.String(), Zstd.String(), S2.String()})
	require.True(t, S2.Valid())
	require.False(t, Codec(3).Valid())
	require.Equal(t, "codec(3)", Codec(3).String())
}

func TestChoice(t *testing.T) {
	for _, c := range []struct {
		choice Choice
		agent  Codec
		adapt  bool
		server Codec
	}{
		{Choice{}, S2, true, None}, {Choice{Codec: "auto"}, S2, true, None}, {Choice{Codec: "zstd"}, Zstd, false, None},
		{Choice{Codec: "none", At: "agent"}, None, false, None}, {Choice{Codec: "zstd", At: "server"}, None, false, Zstd},
		{Choice{At: "server"}, None, false, S2},
	} {
		require.NoError(t, c.choice.Validate())
		agent, adapt := c.choice.Agent()
		require.Equal(t, c.agent, agent, "%+v", c.choice)
		require.Equal(t, c.adapt, adapt, "%+v", c.choice)
		require.Equal(t, c.server, c.choice.Server(), "%+v", c.choice)
	}
	require.ErrorContains(t, Choice{Codec: "lz4"}.Validate(), `compression "lz4"`)
	require.ErrorContains(t, Choice{At: "moon"}.Validate(), `compression at "moon"`)
}
