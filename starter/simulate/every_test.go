package simulate

import (
	"flag"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/workflows/api"
)

// long has a second group, with two machines at the same time, and every way (`make steps`).
var long = flag.Bool("long", false, "disturb every call of a plan of three machines in every way")

// TestEveryStep disturbs every call of every kind of run: going on and going back work from
// there, and nothing is left half made.
func TestEveryStep(t *testing.T) {
	p := api.Plan{Name: "small", Before: shop().Before, Groups: shop().Groups[:1]}
	p.Groups[0].After = nil
	if *long {
		p = shop()
	}
	for _, kind := range api.PlanKinds {
		if kind == api.PlanReturn && !*long {
			continue // its phases are kinds of their own
		}
		t.Run(string(kind), func(t *testing.T) {
			table, err := Every(Options{Plan: p, Kind: kind, Brief: !*long}, func(c Case) {
				require.Empty(t, c.Broken, "%s %s, then %s: %s, %s", c.Call, c.How, c.Then, c.State, c.After)
			})
			require.NoError(t, err)
			require.Len(t, table.Cases, table.Calls*len(ways(kind, !*long)))
			require.Greater(t, table.Calls, 1)
			t.Logf("%d calls, %d cases", table.Calls, len(table.Cases))
		})
	}
}

// TestEveryStepOfARemadeVM: the same where a VM is made anew; what is taken back deletes it,
// and nothing else.
func TestEveryStepOfARemadeVM(t *testing.T) {
	p := api.Plan{Name: "small", Groups: shop().Groups[:1]}
	p.Groups[0].After = nil
	p.Groups[0].Machines = []api.PlanMachine{{Name: "db-1", Location: &api.Location{VCenter: "vc-2", Datastore: "ssd"}}}
	for _, kind := range []api.PlanKind{api.PlanReprotect, api.PlanFailback, api.PlanReenable} {
		r, err := Run(Options{Plan: p, Kind: kind})
		require.NoError(t, err)
		require.Equal(t, api.RunDone, r.State)
		made := slices.ContainsFunc(r.Calls, func(c Call) bool { return c.Name == api.ActMakeVM })
		require.Equal(t, kind == api.PlanReprotect, made)
		_, err = Every(Options{Plan: p, Kind: kind, Brief: !*long}, func(c Case) {
			require.Empty(t, c.Broken, "%s %s, then %s: %s, %s", c.Call, c.How, c.Then, c.State, c.After)
		})
		require.NoError(t, err)
	}
}
