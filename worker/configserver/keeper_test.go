package configserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"

	"drover/datapath/ident"
	"drover/workflows/api"
)

// place is Temporal with a vault, machines that take what they are told, and schedules.
type place struct {
	vault     api.VaultStatus
	told      []string
	deaf      error // what a signal ends with
	takes     bool
	schedules map[string]string
	puts      []string
	fails     error
	lists     int
}

func (p *place) SignalWorkflow(_ context.Context, workflow, _, signal string, arg any) error {
	if p.deaf != nil {
		return p.deaf
	}
	news := arg.(api.VaultNews)
	for i, m := range p.vault.Machines {
		if api.MachineWorkflowID(m.Machine) == workflow && signal == api.SignalVault {
			p.told = append(p.told, m.Name+": "+news.Digest())
			if p.takes {
				p.vault.Machines[i].Follows = news.Digest()
			}
		}
	}
	return nil
}

func (p *place) list(context.Context) (map[string]string, error) {
	out := map[string]string{}
	for id, note := range p.schedules {
		out[id] = note
	}
	p.lists++
	return out, p.fails
}

func (p *place) put(_ context.Context, o client.ScheduleOptions, there bool) error {
	if _, have := p.schedules[o.ID]; have != there {
		return fmt.Errorf("%s is there: %t", o.ID, have)
	}
	p.schedules[o.ID], p.puts = o.Note, append(p.puts, o.ID)
	return p.fails
}

func (p *place) remove(_ context.Context, id string) error {
	delete(p.schedules, id)
	return p.fails
}

func newPlace() (*place, *keeper) {
	p := &place{schedules: map[string]string{}, takes: true}
	policy := func(name, hash string) api.StoredPolicy {
		return api.StoredPolicy{Policy: api.Policy{Name: name}, Hash: hash}
	}
	p.vault = api.VaultStatus{
		Policies: []api.StoredPolicy{policy("gold", "1"), policy("silver", "2")},
		Plans:    []api.StoredPlan{{Plan: api.Plan{Name: "shop", Groups: []api.PlanGroup{{Name: "g", Machines: []api.PlanMachine{{Name: "a"}}}}}}},
	}
	for _, m := range []string{"a gold", "b gold", "c silver"} {
		name, policy, _ := strings.Cut(m, " ")
		p.vault.Machines = append(p.vault.Machines, api.VaultMember{Machine: ident.NewMachineID("v", name), Name: name, Policy: policy})
	}
	k := &keeper{vault: func(context.Context) (api.VaultStatus, error) { return p.vault, nil }, to: p, schedules: p,
		running: func() bool { return true }, log: slog.New(slog.DiscardHandler), told: map[ident.MachineID]toldNews{}}
	return p, k
}

// TestMachinesFollow: each machine is told what it has not taken, once.
func TestMachinesFollow(t *testing.T) {
	p, k := newPlace()
	now := time.Now()
	look := func(d time.Duration, want ...string) {
		t.Helper()
		p.told = nil
		now = now.Add(d)
		k.look(t.Context(), now)
		require.Equal(t, want, p.told)
	}
	look(0, "a: gold 1 shop", "b: gold 1", "c: silver 2")
	look(time.Hour)
	p.vault.Policies[0].Hash = "3" // edited once
	look(vaultLook, "a: gold 3 shop", "b: gold 3")
	p.vault.Plans = nil
	look(vaultLook, "a: gold 3")

	p.takes = false // in the middle of an action
	p.vault.Policies[1].Hash = "4"
	look(vaultLook, "c: silver 4")
	look(vaultLook)
	look(vaultAgain, "c: silver 4")
	look(vaultAgain)
	look(vaultAgain, "c: silver 4")
	told := 0
	for range 30 * 24 * time.Hour / vaultAgain { // it goes on for a month
		now, p.told = now.Add(vaultAgain), nil
		k.look(t.Context(), now)
		told += len(p.told)
	}
	require.Less(t, told, 130)
	require.Greater(t, told, 100)
	p.deaf = errors.New("away")
	p.vault.Policies[1].Hash = "5"
	look(vaultLook)
	p.deaf = nil
	look(vaultLook, "c: silver 5")
	p.deaf = serviceerror.NewNotFound("gone")
	p.vault.Policies[1].Hash = "6"
	look(vaultLook)
	p.deaf = nil
	look(vaultLook) // it has ended: nobody is to be told
	p.vault.Policies = p.vault.Policies[:1]
	look(vaultAgain)
}

// TestSchedulesFollow: a schedule per policy with a window, changed and removed with it.
func TestSchedulesFollow(t *testing.T) {
	p, k := newPlace()
	p.schedules["resync-old"] = "Drover: of a policy that is gone"
	now := time.Now()
	k.look(t.Context(), now)
	require.Empty(t, p.schedules)
	w := &p.vault.Policies[0].Policy.Resync
	w.Automatic, w.Window = true, api.Window{TimeZone: "Europe/Berlin", Start: "22:00", End: "06:00", Days: []string{"fri"}}
	k.look(t.Context(), now)
	k.look(t.Context(), now)
	require.Equal(t, map[string]string{"resync-gold": "Drover: resync window of policy gold, 22:00 to 06:00 Europe/Berlin, fri"}, p.schedules)
	require.Len(t, p.puts, 1)
	w.Window.End = "05:00"
	k.look(t.Context(), now)
	require.Contains(t, p.schedules["resync-gold"], "05:00")
	require.Equal(t, 1, p.lists)

	delete(p.schedules, "resync-gold") // by somebody
	k.look(t.Context(), now.Add(relist))
	require.Contains(t, p.schedules, "resync-gold", "it is mended")
	p.fails = errors.New("away")
	w.Automatic = false
	k.look(t.Context(), now.Add(relist))
	p.fails = nil
	k.look(t.Context(), now.Add(relist))
	require.Empty(t, p.schedules)
}

// TestOpenings: when it opens and every hour, on the days it starts on and the night
// after.
func TestOpenings(t *testing.T) {
	text := func(w api.Window) (out []string) {
		for _, c := range openings(w) {
			days := ""
			for _, d := range c.DayOfWeek {
				days += dayNames[d.Start][:2]
			}
			out = append(out, fmt.Sprintf("%02d:%02d %s", c.Hour[0].Start, c.Minute[0].Start, days))
		}
		return out
	}
	require.Equal(t, []string{"22:30 frsa", "23:30 frsa", "00:30 sasu", "01:30 sasu"}, text(api.Window{Start: "22:30", End: "02:00", Days: []string{"fri", "sat"}}))
	require.Equal(t, []string{"08:00 sumotuwethfrsa"}, text(api.Window{Start: "08:00", End: "08:30"}))
	require.Len(t, openings(api.Window{Start: "06:00", End: "05:59"}), 24)
}
