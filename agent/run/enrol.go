package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"drover/agent/controlapi"
	"drover/agent/enrol"
)

const maxToken = 4 << 10 // bytes of the token file

// enrol gives the identity there is, or exchanges the token for one. It waits for
// a configuration server that does not answer; a refusal is final.
func (a *Agent) enrol(ctx context.Context) (*enrol.Identity, error) {
	id, err := enrol.Load(a.config.State)
	if !errors.Is(err, enrol.ErrNotEnrolled) {
		return id, err
	}
	for pause := backoffFirst; ; pause = min(2*pause, backoffMost) {
		id, err := Enrol(ctx, a.config.ConfigServer, a.config.TokenFile, a.config.State, a.config.Instance, a.version, enrol.Options{Dial: controlapi.Dial(a.dial)})
		if err == nil {
			a.log.Info("enrolled", "peer", id.Peer.String(), "expires", id.Expires())
			return id, nil
		}
		if !transient(err) {
			return nil, err
		}
		a.log.Warn("not enrolled yet; trying again", "error", err.Error(), "pause", pause.String())
		if !sleep(ctx, pause) {
			return nil, ctx.Err()
		}
	}
}

// Enrol exchanges the token in the file for an identity under the state directory.
func Enrol(ctx context.Context, server, tokenFile, state, instance, version string, more enrol.Options) (*enrol.Identity, error) {
	if tokenFile == "" {
		return nil, errors.New("enrol: no identity yet, and no tokenFile is configured; issue a token with `drover-config-server token --role agent`")
	}
	token, err := readToken(tokenFile)
	if err != nil {
		return nil, fmt.Errorf("enrol: read the token: %w", err)
	}
	more.Server, more.Token, more.StateDir, more.Instance, more.Version = server, token, state, instance, version
	id, err := enrol.Enrol(ctx, more)
	if err != nil {
		return nil, fmt.Errorf("enrol at %s: %w", server, err)
	}
	return id, nil
}

func readToken(file string) (string, error) {
	f, err := os.Open(file) //nolint:gosec // the operator names it
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxToken))
	return strings.TrimSpace(string(b)), errors.Join(err, f.Close())
}

// transient reports whether the server could not be reached, as opposed to being
// the wrong one or refusing.
func transient(err error) bool {
	var refused *controlapi.Error
	if errors.As(err, &refused) {
		return false
	}
	var network *net.OpError
	return errors.As(err, &network) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}
