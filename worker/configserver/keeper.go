package configserver

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"

	"drover/datapath/ident"
	"drover/worker/service"
	"drover/workflows/api"
)

// Bounds of keeping machines and schedules in step with the vault.
const (
	vaultLook   = 5 * time.Second  // between two looks into the vault
	vaultAgain  = 15 * time.Minute // a machine that has not taken what it was told is told again,
	vaultSeldom = 6 * time.Hour    // ever more seldom: it may be in a base copy of weeks, whose history must not grow
	vaultAtOnce = 200              // machines told in one look
	vaultCall   = 15 * time.Second // one call to Temporal
	relist      = 10 * time.Minute // schedules are looked through, whatever is remembered
)

// keeper brings what is set up in the vault to where it counts, and no workflow can: a
// changed policy, and the plans that name it, to each machine; a resync window to a
// Temporal Schedule. It compares and mends, so that nothing depends on having seen a
// change.
type keeper struct {
	vault     func(context.Context) (api.VaultStatus, error)
	to        signaller
	schedules schedules
	running   func() bool // the worker of the control queue
	log       *slog.Logger
	told      map[ident.MachineID]toldNews
	kept      map[string]string // schedules as they are: id -> note; nil: to be listed
	listed    time.Time
}

// toldNews is what a machine was told last.
type toldNews struct {
	digest string
	at     time.Time
	again  time.Duration // after which it is told the same again
}

func newKeeper(t *service.Temporal, log *slog.Logger) *keeper {
	return &keeper{
		vault: func(ctx context.Context) (v api.VaultStatus, err error) {
			value, err := t.Client.QueryWorkflow(ctx, api.VaultID, "", api.QueryStatus)
			if err == nil {
				err = value.Get(&v)
			}
			return v, err
		},
		to: t.Client, schedules: temporalSchedules{t.Client}, running: t.Running, log: log, told: map[ident.MachineID]toldNews{},
	}
}

func (k *keeper) run(ctx context.Context) error { return look(ctx, vaultLook, k.running, k.look) }

// look compares once. What could not be done is tried again with the next look.
func (k *keeper) look(ctx context.Context, now time.Time) {
	asking, cancel := context.WithTimeout(ctx, vaultCall)
	v, err := k.vault(asking)
	cancel()
	if err != nil {
		k.log.Warn("the vault could not be read; machines and schedules stay as they are", "error", err.Error())
		return
	}
	k.tell(ctx, v, now)
	if err := k.keepSchedules(ctx, v, now); err != nil && ctx.Err() == nil {
		k.kept = nil // it is not known what became of them
		k.log.Warn("the schedules of resync windows are not what the policies say", "error", err.Error())
	}
}

// tell sends each machine what it has not taken yet.
func (k *keeper) tell(ctx context.Context, v api.VaultStatus, now time.Time) {
	here, sent := map[ident.MachineID]toldNews{}, 0
	for _, m := range v.Machines {
		news, ok := v.News(m)
		last := k.told[m.Machine]
		here[m.Machine] = last
		digest := news.Digest()
		if !ok || digest == m.Follows || last.digest == digest && now.Sub(last.at) < last.again {
			continue
		}
		if sent++; sent > vaultAtOnce || ctx.Err() != nil {
			continue
		}
		call, cancel := context.WithTimeout(ctx, vaultCall)
		err := k.to.SignalWorkflow(call, api.MachineWorkflowID(m.Machine), "", api.SignalVault, news)
		cancel()
		var gone *serviceerror.NotFound
		if err != nil && !errors.As(err, &gone) {
			k.log.Warn("a machine could not be told of its policy; trying again", "machine", m.Machine.String(), "error", err.Error())
			continue
		}
		again := vaultAgain
		if last.digest == digest {
			again = min(2*last.again, vaultSeldom)
		}
		here[m.Machine] = toldNews{digest: digest, at: now, again: again}
	}
	k.told = here
}

// keepSchedules makes the schedules what the policies say.
func (k *keeper) keepSchedules(ctx context.Context, v api.VaultStatus, now time.Time) (err error) {
	if k.kept == nil || now.Sub(k.listed) >= relist {
		if k.kept, err = k.schedules.list(ctx); err != nil {
			return err
		}
		k.listed = now
	}
	wanted := map[string]bool{}
	for _, p := range v.Policies {
		if !p.Policy.Resync.Automatic || p.Policy.Resync.Window.Start == "" {
			continue
		}
		o := windowSchedule(p.Policy)
		wanted[o.ID] = true
		note, there := k.kept[o.ID]
		if note == o.Note {
			continue
		}
		if err := k.schedules.put(ctx, o, there); err != nil {
			return err
		}
		k.kept[o.ID] = o.Note
		k.log.Info("resync window", "policy", p.Policy.Name, "schedule", o.ID, "note", o.Note)
	}
	for id := range k.kept {
		if wanted[id] {
			continue
		}
		if err := k.schedules.remove(ctx, id); err != nil {
			return err
		}
		delete(k.kept, id)
		k.log.Info("resync window removed", "schedule", id)
	}
	return nil
}

// schedules are those of resync windows.
type schedules interface {
	list(ctx context.Context) (notes map[string]string, err error)
	put(ctx context.Context, o client.ScheduleOptions, there bool) error
	remove(ctx context.Context, id string) error
}
