package processserver

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/converter"

	"drover/datapath/replica/file"
	"drover/workflows/api"
)

// fakeVault answers with a status, or is away.
type fakeVault struct {
	status api.VaultStatus
	err    error
}

func (f *fakeVault) QueryWorkflow(_ context.Context, id, _, query string, _ ...any) (converter.EncodedValue, error) {
	if id != api.VaultID || query != api.QueryStatus {
		return nil, errors.New("not the vault's status")
	}
	return vaultAnswer{f.status}, f.err
}

type vaultAnswer struct{ status api.VaultStatus }

func (a vaultAnswer) HasValue() bool { return true }
func (a vaultAnswer) Get(p any) error {
	b, err := json.Marshal(a.status)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, p)
}

func plan(name string, groups ...string) api.StoredPlan {
	p := api.StoredPlan{Plan: api.Plan{Name: name}, Hash: name}
	for _, g := range groups {
		p.Plan.Groups = append(p.Plan.Groups, api.PlanGroup{Name: g, Machines: []api.PlanMachine{{Name: g + "-1"}}})
	}
	return p
}

func TestMirror(t *testing.T) {
	store, err := file.Open(t.TempDir())
	require.NoError(t, err)
	require.NoError(t, store.PutDocument(t.Context(), "notes", []byte("not ours")))
	v := &fakeVault{}
	v.status.Plans = []api.StoredPlan{plan("shop", "db", "web"), plan("crm", "db")}
	v.status.Policies = []api.StoredPolicy{{Policy: api.Policy{Name: "gold"}}}
	m := &mirror{vault: v, store: store, log: slog.New(slog.DiscardHandler)}
	names := func() []string {
		docs, err := store.Documents(t.Context())
		require.NoError(t, err)
		var out []string
		for name := range docs {
			out = append(out, name)
		}
		return out
	}
	require.NoError(t, m.once(t.Context()))
	require.ElementsMatch(t, []string{"notes", "plan-shop", "plan-crm", "policy-gold"}, names())
	var got api.StoredPlan
	docs, err := store.Documents(t.Context())
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(docs["plan-shop"], &got))
	require.Equal(t, v.status.Plans[0], got)

	v.status.Plans = []api.StoredPlan{plan("shop", "db")}
	require.NoError(t, m.once(t.Context()))
	require.ElementsMatch(t, []string{"notes", "plan-shop", "policy-gold"}, names(), "a deleted plan goes")

	v.err = errors.New("away")
	require.ErrorContains(t, m.once(t.Context()), "ask the vault: away")
	v.err, v.status = nil, api.VaultStatus{}
	require.NoError(t, m.once(t.Context()))
	require.ElementsMatch(t, []string{"notes", "plan-shop", "policy-gold"}, names(), "a vault that is new or lost removes nothing")
}
