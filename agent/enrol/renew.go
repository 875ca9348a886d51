package enrol

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"drover/agent/controlapi"
)

// When renewal is tried.
const (
	renewFirstRetry = 10 * time.Second
	renewLastRetry  = 10 * time.Minute
	// renewLook bounds one sleep, so that a clock that jumps is noticed.
	renewLook = 10 * time.Minute
	// renewLeast is the least time between two renewals, however short lives are.
	renewLeast = time.Second
)

// Renewer is the part of the control client that renewal needs.
type Renewer interface {
	Renew(ctx context.Context, req controlapi.RenewRequest) (controlapi.EnrolResponse, error)
}

// KeepRenewed renews the certificate, with a new key, at two thirds of its life,
// and goes on until ctx ends. A failure is logged and tried again, at longer and
// longer intervals up to ten minutes; the present certificate stays in use.
func (id *Identity) KeepRenewed(ctx context.Context, client Renewer, log *slog.Logger) {
	retry := renewFirstRetry
	next := id.RenewAt()
	for {
		if !sleep(ctx, min(time.Until(next), renewLook)) {
			return
		}
		if time.Now().Before(next) {
			continue
		}
		if err := id.renewOrKeep(ctx, client); err != nil {
			if ctx.Err() != nil {
				return
			}
			level := slog.LevelWarn
			var e *controlapi.Error
			if errors.As(err, &e) && e.Code == controlapi.CodeRevoked {
				level = slog.LevelError
			}
			log.Log(ctx, level, "certificate not renewed", "error", err, "expires", id.Expires())
			// What is left of a short life is tried more often in. Servers and agents that
			// lost the server together shall not come back together.
			pause := min(retry, max(renewLeast, time.Until(id.Expires())/3))
			next = time.Now().Add(pause/2 + rand.N(pause/2+1)) //nolint:gosec // only spreads load
			retry = min(2*retry, renewLastRetry)
			continue
		}
		retry, next = renewFirstRetry, id.RenewAt()
		if least := time.Now().Add(renewLeast); next.Before(least) {
			next = least
		}
		log.Info("certificate renewed", "peer", id.Peer.String(), "expires", id.Expires())
	}
}

// renewOrKeep renews, unless the certificate is new and only waits to be kept.
func (id *Identity) renewOrKeep(ctx context.Context, client Renewer) error {
	if !id.Kept() && time.Now().Before(id.RenewAt()) {
		return id.keep()
	}
	return id.Renew(ctx, client)
}

// Renew gets a new certificate with a new key, keeps it and puts it to use.
func (id *Identity) Renew(ctx context.Context, client Renewer) error {
	key, csr, err := newKey()
	if err != nil {
		return fmt.Errorf("renew the certificate of %s: %w", id.Peer, err)
	}
	res, err := client.Renew(ctx, controlapi.RenewRequest{CSR: csr})
	if err != nil {
		return err
	}
	if err := id.install(key, []byte(res.Certificate)); err != nil {
		return fmt.Errorf("renew the certificate of %s: %w", id.Peer, err)
	}
	return nil
}

// Expires is the end of the certificate's life.
func (id *Identity) Expires() time.Time { return id.Certificate().Leaf.NotAfter }

// RenewAt is when the certificate is due for renewal: at two thirds of its life.
func (id *Identity) RenewAt() time.Time {
	leaf := id.Certificate().Leaf
	return leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) * 2 / 3)
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
