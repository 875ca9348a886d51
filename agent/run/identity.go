package run

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"drover/agent/config"
	"drover/agent/controlapi"
	"drover/agent/enrol"
)

// identityLook is how often the token file and the certificate's age are looked at.
const identityLook = 5 * time.Second

// States while there is no valid certificate.
const (
	stateNotEnrolled = "not-enrolled"
	stateExpired     = "certificate-expired"
)

// token is what the token file holds now, and what became of it.
type token struct {
	file  string
	tried [sha256.Size]byte // of the one that was refused
	why   error
}

// enrol gives the identity there is, or waits for a token and exchanges it for one.
func (a *Agent) enrol(ctx context.Context) (*enrol.Identity, error) {
	id, err := enrol.Load(a.config.State)
	if errors.Is(err, enrol.ErrExpired) {
		a.told.identity(id)
		return id, a.renewed(ctx, id)
	}
	if !errors.Is(err, enrol.ErrNotEnrolled) {
		return id, err
	}
	if a.config.TokenFile == "" {
		return nil, errors.New("enrol: no identity yet, and no tokenFile is configured; issue a token with `drover-config-server token --role agent`")
	}
	err = a.withToken(ctx, stateNotEnrolled, "this machine is not enrolled", func(o enrol.Options) error {
		var err error
		id, err = enrol.Enrol(ctx, o)
		return err
	})
	return id, err
}

// renewed waits until an expired identity has a certificate again.
func (a *Agent) renewed(ctx context.Context, id *enrol.Identity) error {
	what := "the certificate expired at " + id.Expires().UTC().Format(time.RFC3339)
	return a.withToken(ctx, stateExpired, what, func(o enrol.Options) error {
		err := id.Reenrol(ctx, o)
		if errors.Is(err, enrol.ErrNotKept) {
			a.log.Error("enrolled again", "error", err.Error())
			return nil
		}
		return err
	})
}

// withToken calls use with the token of the token file until it succeeds. It waits for a
// file that is not there, a server that does not answer, and after a refusal for
// another token: an operator puts it there, nobody restarts anything.
func (a *Agent) withToken(ctx context.Context, state, what string, use func(enrol.Options) error) error {
	t := token{file: a.config.TokenFile}
	for pause, said := backoffFirst, ""; ; pause = min(2*pause, identityLook) {
		err := t.exchange(a.config, a.version, a.dial, use)
		if err == nil {
			a.told.waiting("", "")
			a.log.Info("enrolled", "tokenFile", t.file)
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		detail := fmt.Sprintf("%s; %s; issue a token with `drover-config-server token --role agent --instance %s` and the machine's id, and put it into %s: it is taken up without a restart",
			what, err, a.config.Instance, t.file)
		a.told.waiting(state, detail)
		if detail != said {
			said = detail
			a.log.Warn("no valid certificate; changes are not sent until there is one", "state", state, "detail", detail)
		}
		if !sleep(ctx, pause) {
			return ctx.Err()
		}
	}
}

// exchange tries the token of the file, unless it was refused already.
func (t *token) exchange(c *config.Config, version string, dial controlapi.Dial, use func(enrol.Options) error) error {
	text, err := enrol.ReadToken(t.file)
	if errors.Is(err, os.ErrNotExist) {
		return errors.New("there is no token")
	}
	if err != nil {
		return fmt.Errorf("read the token: %w", err)
	}
	sum := sha256.Sum256([]byte(text))
	if sum == t.tried {
		return t.why
	}
	err = use(enrol.Options{Server: c.ConfigServer, Token: text, StateDir: c.State, Instance: c.Instance, Version: version, Dial: dial})
	var refused *controlapi.Error
	if errors.As(err, &refused) && !enrol.Transient(err) {
		t.tried, t.why = sum, err
	}
	return err
}

// keepIdentity renews the certificate as long as that goes. When its life has ended all
// the same, it waits for a new token; the disks are tracked meanwhile.
func (a *Agent) keepIdentity(ctx context.Context) error {
	for ctx.Err() == nil {
		inner, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() { a.identity.KeepRenewed(inner, a.control, a.log) })
		for left := lifeLeft(a.identity); left > 0 && sleep(ctx, min(left, identityLook)); left = lifeLeft(a.identity) {
			continue // clocks jump, and it is renewed: look again and again
		}
		cancel()
		wg.Wait()
		if ctx.Err() == nil && a.renewed(ctx, a.identity) == nil { // else asked to stop
			a.control.Close() // what is open has the old certificate
		}
	}
	return nil
}

// lifeLeft is how long the certificate is still good for.
func lifeLeft(id *enrol.Identity) time.Duration { return time.Until(id.Expires()) + time.Millisecond }

// Enrol exchanges the token in the configuration's file for an identity under the
// state directory, once. A nil dial connects directly.
func Enrol(ctx context.Context, c *config.Config, version string, dial controlapi.Dial) (*enrol.Identity, error) {
	unlock, err := lockState(c.State)
	if err != nil {
		return nil, fmt.Errorf("enrol: %w", err)
	}
	defer unlock()
	var id *enrol.Identity
	t := token{file: c.TokenFile}
	err = t.exchange(c, version, dial, func(o enrol.Options) error {
		var err error
		id, err = enrol.Enrol(ctx, o)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("enrol at %s with the token in %s: %w", c.ConfigServer, c.TokenFile, err)
	}
	return id, nil
}
