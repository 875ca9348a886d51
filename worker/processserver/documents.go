package processserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"go.temporal.io/sdk/converter"

	"drover/datapath/replica"
	"drover/workflows/api"
)

const (
	// mirrorEvery is how often the store is brought up to the vault.
	mirrorEvery = 15 * time.Second
	// mirrorLimit bounds one look at the vault.
	mirrorLimit = 10 * time.Second

	planPrefix   = "plan-"
	policyPrefix = "policy-"
)

// vaultQuery asks a workflow; client.Client has it.
type vaultQuery interface {
	QueryWorkflow(ctx context.Context, workflowID, runID, queryType string, args ...any) (converter.EncodedValue, error)
}

// mirror keeps the vault's recovery plans and policies beside the machines in the
// store, for the day when there is no vault any more.
type mirror struct {
	vault   vaultQuery
	store   replica.Store
	log     *slog.Logger
	trouble string // why it did not work last time
}

// Run mirrors until ctx ends. That the vault is away is no failure: the store has
// what it had.
func (m *mirror) Run(ctx context.Context) error {
	ticker := time.NewTicker(mirrorEvery)
	defer ticker.Stop()
	for {
		err := m.once(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if text := fmt.Sprint(err); err != nil && text != m.trouble {
			m.log.Warn("recovery plans and policies are not brought up to date in the store; it is tried again", "error", text)
		}
		m.trouble = fmt.Sprint(err)
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// once makes the store's plans and policies those of the vault. A vault with nothing
// in it removes nothing: it may be a new one, after the old one was lost.
func (m *mirror) once(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, mirrorLimit)
	defer cancel()
	answer, err := m.vault.QueryWorkflow(ctx, api.VaultID, "", api.QueryStatus)
	if err != nil {
		return fmt.Errorf("ask the vault: %w", err)
	}
	var v api.VaultStatus
	if err := answer.Get(&v); err != nil {
		return fmt.Errorf("ask the vault: %w", err)
	}
	want, err := documentsOf(v)
	if err != nil {
		return err
	}
	have, err := m.store.Documents(ctx)
	if err != nil {
		return err
	}
	for name, content := range want {
		if !bytes.Equal(have[name], content) {
			err = errors.Join(err, m.store.PutDocument(ctx, name, content))
		}
	}
	if len(want) == 0 && len(v.Machines) == 0 {
		return err
	}
	for name := range have {
		if _, ok := want[name]; !ok && (strings.HasPrefix(name, planPrefix) || strings.HasPrefix(name, policyPrefix)) {
			err = errors.Join(err, m.store.RemoveDocument(ctx, name))
		}
	}
	return err
}

func documentsOf(v api.VaultStatus) (map[string][]byte, error) {
	out := map[string][]byte{}
	add := func(name string, doc any) error {
		b, err := json.MarshalIndent(doc, "", "  ")
		out[name] = b
		return err
	}
	var err error
	for _, p := range v.Plans {
		err = errors.Join(err, add(planPrefix+p.Plan.Name, p))
	}
	for _, p := range v.Policies {
		err = errors.Join(err, add(policyPrefix+p.Policy.Name, p))
	}
	return out, err
}
