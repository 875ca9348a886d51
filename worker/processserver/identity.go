package processserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"drover/agent/enrol"
	"drover/datapath/ident"
	"drover/worker/config"
	"drover/worker/service"
)

// Pauses between tries to enrol at a configuration server that does not answer.
const (
	enrolFirst = 500 * time.Millisecond
	enrolMost  = 15 * time.Second
)

// identity gives the server's identity: the one it has, or a new one for the token.
func identity(ctx context.Context, c *config.ProcessServer, log *slog.Logger) (*enrol.Identity, error) {
	id, err := enrol.Load(c.State)
	if errors.Is(err, enrol.ErrNotEnrolled) {
		id, err = enrolOnce(ctx, c, log)
	}
	if err != nil {
		return nil, err
	}
	if want := (ident.Peer{Role: c.Role, Name: c.Name}); id.Peer != want {
		return nil, fmt.Errorf("the identity under %s is %s, the configuration says %s: correct the configuration, or remove the identity and enrol again", c.State, id.Peer, want)
	}
	return id, nil
}

// enrolOnce enrols with the token file. It waits for a configuration server that
// does not answer; a refusal is final.
func enrolOnce(ctx context.Context, c *config.ProcessServer, log *slog.Logger) (*enrol.Identity, error) {
	if c.TokenFile == "" {
		return nil, fmt.Errorf("%s is not enrolled and the configuration names no tokenFile: issue a token with `drover-config-server token --role %s --name %s`", c.Name, c.Role, c.Name)
	}
	token, err := enrol.ReadToken(c.TokenFile)
	if err != nil {
		return nil, fmt.Errorf("enrol %s: read the token: %w; issue one with `drover-config-server token --role %s --name %s`", c.Name, err, c.Role, c.Name)
	}
	for pause := enrolFirst; ; pause = min(2*pause, enrolMost) {
		id, err := enrol.Enrol(ctx, enrol.Options{
			Server: c.ConfigServer, Token: token, StateDir: c.State,
			Instance: instance(c), Version: service.Version(), DataAddress: c.Advertise,
		})
		if err == nil {
			log.Info("enrolled", "peer", id.Peer.String(), "expires", id.Expires())
			return id, nil
		}
		if !enrol.Transient(err) {
			return nil, fmt.Errorf("enrol %s: %w", c.Name, err)
		}
		log.Warn("not enrolled yet; trying again", "error", err.Error(), "pause", pause.String())
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// dmiUUID is where Linux shows the machine's hardware uuid.
const dmiUUID = "/sys/class/dmi/id/product_uuid"

// instance is the machine's hardware uuid. It only informs: of several servers on
// one machine, and where it cannot be read, the name tells them apart.
func instance(c *config.ProcessServer) string {
	b, err := os.ReadFile(dmiUUID)
	if err != nil {
		return c.Name
	}
	return strings.ToLower(strings.TrimSpace(string(b)))
}
