package codec

import "fmt"

// Where chunks are encoded. At the agent it saves the line and takes the machine's
// processors; at the server it is the other way round.
const (
	AtAgent  = "agent"
	AtServer = "server"
)

// Auto begins with s2 and goes to zstd while the line is what everything waits for.
const Auto = "auto"

// Choice is what a replication policy says of compression. The zero Choice is
// auto, at the agent.
type Choice struct {
	Codec string `json:"codec,omitempty" yaml:"codec"` // auto, none, s2 or zstd
	At    string `json:"at,omitempty" yaml:"at"`       // agent or server
}

// Validate checks the words.
func (c Choice) Validate() error {
	if _, _, err := c.parse(); err != nil {
		return err
	}
	if c.At != "" && c.At != AtAgent && c.At != AtServer {
		return fmt.Errorf("compression at %q: want %s or %s", c.At, AtAgent, AtServer)
	}
	return nil
}

func (c Choice) parse() (codec Codec, adapt bool, err error) {
	if c.Codec == "" || c.Codec == Auto {
		return S2, true, nil
	}
	for i, n := range names {
		if n == c.Codec {
			return Codec(i), false, nil
		}
	}
	return None, false, fmt.Errorf("compression %q: want auto, none, s2 or zstd", c.Codec)
}

// Agent is what the agent does: with adapt it may go to another codec by itself.
func (c Choice) Agent() (codec Codec, adapt bool) {
	if c.At == AtServer {
		return None, false
	}
	codec, adapt, _ = c.parse() // a wrong word was refused before
	return codec, adapt
}

// Server is what the server does with chunks that come as they are.
func (c Choice) Server() Codec {
	if c.At != AtServer {
		return None
	}
	codec, _, _ := c.parse() // a wrong word was refused before
	return codec
}
