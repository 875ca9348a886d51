package configserver

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"time"

	"go.temporal.io/api/serviceerror"
	"golang.org/x/time/rate"

	"drover/agent/controlapi"
	"drover/datapath/ident"
	"drover/datapath/release"
	"drover/worker/registry"
	"drover/worker/service"
	"drover/workflows/api"
)

// Bounds of telling machines' entities what their agents report.
const (
	reportLook  = 5 * time.Second // between two looks at what agents reported
	reportEvery = time.Minute     // a machine is told so often at most, whatever its agent says,
	// and no more than reportBurst times and once every reportSlow: a guest that reports
	// something new every minute must not fill the history of its machine, which grows all
	// through a base copy of weeks.
	reportBurst = 12
	reportSlow  = 2 * time.Hour
	reportCall  = 10 * time.Second // one signal
)

// reports shows what agents said last, as workflows see it.
type reports struct{ *registry.Registry }

// of lists what is known of a machine's agents, the one heard of last first. One whose
// certificate was revoked counts as none.
func (r reports) of(machine ident.MachineID) ([]api.AgentReport, error) {
	records, err := r.Agents(machine)
	out := make([]api.AgentReport, len(records))
	for i, a := range records {
		out[i] = reportOf(machine, a)
	}
	return out, err
}

// own is the report that counts for a machine: of the copy of it that is assigned, else
// of the one heard of last.
func (r reports) own(machine ident.MachineID) (api.AgentReport, bool, error) {
	all, err := r.of(machine)
	if err != nil || len(all) == 0 {
		return api.AgentReport{}, false, err
	}
	if as, ok := r.Assignment(machine); ok && as.Action == controlapi.ActionReplicate {
		for _, a := range all {
			if strings.EqualFold(a.Instance, as.Instance) {
				return a, true, nil
			}
		}
		return api.AgentReport{}, false, nil // it has not called yet
	}
	return all[0], true, nil
}

// machines lists the machines that have an agent.
func (r reports) machines() (out []ident.MachineID, err error) {
	peers, err := r.Peers()
	for _, p := range peers {
		if id, err := ident.ParseMachineID(p.Name); err == nil && p.Role == ident.RoleAgent && !p.Revoked {
			out = append(out, id)
		}
	}
	return out, err
}

func reportOf(machine ident.MachineID, a registry.AgentRecord) api.AgentReport {
	out := api.AgentReport{Machine: machine, Instance: a.Instance, Version: a.Version, LastSeen: a.LastSeen.UTC(), State: a.State, Detail: a.Detail}
	if err := release.Takes(service.Version(), a.Version); err != nil {
		out.Refused = err.Error()
	}
	out.Reached = (*api.AgentReached)(a.Reached)
	in := a.Inventory
	if in == nil {
		return out
	}
	out.Hostname, out.OS, out.Kernel, out.BootID, out.Tracker, out.Truncated = in.Hostname, in.OS, in.Kernel, in.BootID, in.Tracker, in.Truncated
	for _, d := range in.Disks {
		disk := api.AgentDisk{BackingUUID: d.BackingUUID, Path: d.Path, Size: d.Size, Model: d.Model, Serial: d.Serial, Removable: d.Removable,
			ReadOnly: d.ReadOnly, Paths: d.Paths, Protected: d.Protected, Why: d.Why, Gone: d.Gone}
		for _, p := range d.Parts {
			disk.Parts = append(disk.Parts, api.AgentPart(p))
		}
		out.Disks = append(out.Disks, disk)
	}
	for _, f := range in.Preflight {
		out.Preflight = append(out.Preflight, api.Finding(f))
	}
	return out
}

// signaller sends a signal to a workflow; the Temporal client does.
type signaller interface {
	SignalWorkflow(ctx context.Context, workflow, run, signal string, arg any) error
}

// reporter tells the entities of machines what their agents report, when it has changed.
// After a start it tells each of them once.
type reporter struct {
	reports
	to      signaller
	running func() bool // the worker of the control queue
	log     *slog.Logger
	told    map[ident.MachineID]told
}

// told is what an entity was told last.
type told struct {
	digest []byte // nil: nobody took it
	at     time.Time
	budget *rate.Limiter
}

func newReporter(r reports, t *service.Temporal, log *slog.Logger) *reporter {
	return &reporter{reports: r, to: t.Client, running: t.Running, log: log, told: map[ident.MachineID]told{}}
}

func (r *reporter) run(ctx context.Context) error { return look(ctx, reportLook, r.running, r.look) }

// look looks now and then, while the worker runs, until ctx ends.
func look(ctx context.Context, every time.Duration, running func() bool, once func(context.Context, time.Time)) error {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if running() {
			once(ctx, time.Now())
		}
	}
}

// look tells what is new. What could not be told is told later.
func (r *reporter) look(ctx context.Context, now time.Time) {
	machines, err := r.machines()
	if err != nil {
		r.log.Warn("machines are not told what their agents report", "error", err.Error())
		return
	}
	here := map[ident.MachineID]told{}
	for _, m := range machines {
		if ctx.Err() != nil {
			return
		}
		last, ok := r.told[m]
		if !ok {
			last.budget = rate.NewLimiter(rate.Every(reportSlow), reportBurst)
		}
		here[m] = last
		if now.Sub(last.at) < reportEvery || last.budget.TokensAt(now) < 1 {
			continue
		}
		report, ok, err := r.own(m)
		if err != nil {
			r.log.Warn("what an agent reports could not be read", "machine", m.String(), "error", err.Error())
		}
		if !ok || err != nil {
			continue
		}
		if digest := digestOf(report); !bytes.Equal(digest, last.digest) {
			last.digest, last.at = r.tell(ctx, report, digest), now
			if last.digest != nil {
				last.budget.AllowN(now, 1)
			}
			here[m] = last
		}
	}
	r.told = here // what was revoked is forgotten
}

// tell signals a machine's entity; nil when there is none, or it was not reached.
func (r *reporter) tell(ctx context.Context, report api.AgentReport, digest []byte) []byte {
	ctx, cancel := context.WithTimeout(ctx, reportCall)
	defer cancel()
	err := r.to.SignalWorkflow(ctx, api.MachineWorkflowID(report.Machine), "", api.SignalAgent, report)
	var absent *serviceerror.NotFound
	switch {
	case err == nil:
		return digest
	case !errors.As(err, &absent): // else it is not protected, or not yet
		r.log.Warn("a machine is not told what its agent reports; it is told later", "machine", report.Machine.String(), "error", err.Error())
	}
	return nil
}

// digestOf is the same for reports that say the same of the guest.
func digestOf(r api.AgentReport) []byte {
	r.LastSeen, r.State, r.Detail, r.Reached = time.Time{}, "", "", nil
	b, err := json.Marshal(r)
	if err != nil {
		return nil // there is nothing in it that has no JSON
	}
	sum := sha256.Sum256(b)
	return sum[:]
}
