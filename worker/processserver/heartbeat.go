package processserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"drover/agent/controlapi"
	"drover/datapath/durable"
	"drover/datapath/health"
	"drover/datapath/ident"
)

// heartbeatEvery is how often the configuration server hears of us. It takes a
// server that was silent for 30 s as gone.
const heartbeatEvery = 5 * time.Second

// deniedFile keeps the deny list under the state directory, so that a revoked
// agent stays out when we start while the configuration server is away.
const deniedFile = "denied.json"

// denyList holds the agents whose certificates were revoked.
type denyList struct {
	file  string
	names atomic.Pointer[map[string]bool]
	raw   string
}

func openDenyList(state string) (*denyList, error) {
	d := &denyList{file: filepath.Join(state, deniedFile)}
	var names []string
	b, err := os.ReadFile(d.file)
	if err == nil {
		err = json.Unmarshal(b, &names)
	} else if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the deny list %s: %w", d.file, err)
	}
	d.raw = string(b)
	d.use(names)
	return d, nil
}

func (d *denyList) use(names []string) {
	set := make(map[string]bool, len(names))
	for _, n := range names {
		set[n] = true
	}
	d.names.Store(&set)
}

// set replaces the list at once, and the file when it differs.
func (d *denyList) set(names []string) error {
	b, err := json.Marshal(names)
	if err != nil {
		return fmt.Errorf("keep the deny list: %w", err)
	}
	if string(b) == d.raw {
		return nil
	}
	d.use(names)
	if err := durable.WriteFile(d.file, b, 0o600); err != nil {
		return fmt.Errorf("keep the deny list: %w", err)
	}
	d.raw = string(b)
	return nil
}

// Denied reports whether the peer is an agent whose certificate was revoked.
func (d *denyList) Denied(p ident.Peer) bool {
	return p.Role == ident.RoleAgent && (*d.names.Load())[p.Name]
}

// heartbeats tells the configuration server that this server lives.
type heartbeats struct {
	client interface {
		Heartbeat(context.Context, controlapi.Heartbeat) (controlapi.HeartbeatResponse, error)
	}
	beat   controlapi.Heartbeat // but for the time
	denied *denyList
	health func() health.Report
	every  time.Duration
	log    *slog.Logger
	heard  atomic.Bool // the configuration server has answered once
}

// Run heartbeats until ctx ends. A configuration server that is away is logged
// when it goes and when it comes back.
func (h *heartbeats) Run(ctx context.Context) error {
	ticker := time.NewTicker(h.every)
	defer ticker.Stop()
	away := false
	for {
		err := h.once(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !away:
			h.log.Warn("the configuration server does not take the heartbeat; streams go on", "error", err.Error())
		case err == nil && away:
			h.log.Info("the configuration server takes heartbeats again")
		}
		away = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

func (h *heartbeats) once(ctx context.Context) error {
	beat := h.beat
	beat.Time = time.Now().UTC()
	report := h.health()
	beat.Health = &report
	answer, err := h.client.Heartbeat(ctx, beat)
	if err != nil {
		return err
	}
	h.heard.Store(true)
	return h.denied.set(answer.Denied)
}
