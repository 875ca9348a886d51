package run

import (
	"context"
	"errors"
	"fmt"

	"drover/agent/config"
	"drover/agent/controlapi"
	"drover/agent/enrol"
)

// enrol gives the identity there is, or exchanges the token for one. It waits for
// a configuration server that does not answer; a refusal is final.
func (a *Agent) enrol(ctx context.Context) (*enrol.Identity, error) {
	id, err := enrol.Load(a.config.State)
	if !errors.Is(err, enrol.ErrNotEnrolled) {
		return id, err
	}
	for pause := backoffFirst; ; pause = min(2*pause, backoffMost) {
		id, err := Enrol(ctx, a.config, a.version, controlapi.Dial(a.dial))
		if err == nil {
			a.log.Info("enrolled", "peer", id.Peer.String(), "expires", id.Expires())
			return id, nil
		}
		if !enrol.Transient(err) {
			return nil, err
		}
		a.log.Warn("not enrolled yet; trying again", "error", err.Error(), "pause", pause.String())
		if !sleep(ctx, pause) {
			return nil, ctx.Err()
		}
	}
}

// Enrol exchanges the token in the configuration's file for an identity under the
// state directory. A nil dial connects directly.
func Enrol(ctx context.Context, c *config.Config, version string, dial controlapi.Dial) (*enrol.Identity, error) {
	if c.TokenFile == "" {
		return nil, errors.New("enrol: no identity yet, and no tokenFile is configured; issue a token with `drover-config-server token --role agent`")
	}
	token, err := enrol.ReadToken(c.TokenFile)
	if err != nil {
		return nil, fmt.Errorf("enrol: read the token: %w", err)
	}
	id, err := enrol.Enrol(ctx, enrol.Options{
		Server: c.ConfigServer, Token: token, StateDir: c.State, Instance: c.Instance, Version: version, Dial: dial,
	})
	if err != nil {
		return nil, fmt.Errorf("enrol at %s: %w", c.ConfigServer, err)
	}
	return id, nil
}
