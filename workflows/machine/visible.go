package machine

import (
	"fmt"
	"slices"
	"strings"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
)

// publish keeps search attributes and memo in step with the machine. They are written
// when something in them has changed: each writing is two events.
func (e *entity) publish(ctx workflow.Context) {
	updates := []temporal.SearchAttributeUpdate{
		keyword(api.SearchState, string(e.s.State)), keyword(api.SearchHealth, string(e.s.Health)),
		keyword(api.SearchPolicy, e.s.Policy), keyword(api.SearchMachine, e.s.Name),
	}
	if e.version == workflow.DefaultVersion {
		e.search(ctx, updates...)
		return
	}
	now := e.picture()
	if slices.Equal(now, e.published) {
		return
	}
	e.published = now
	if e.in.Site != "" {
		updates = append(updates, keyword(api.SearchSite, e.in.Site))
	}
	plans := temporal.NewSearchAttributeKeyKeywordList(api.SearchPlans)
	if len(e.s.Plans) > 0 {
		updates = append(updates, plans.ValueSet(e.s.Plans))
	} else {
		updates = append(updates, plans.ValueUnset())
	}
	e.search(ctx, updates...)
	if err := workflow.UpsertMemo(ctx, map[string]any{api.MemoSummary: e.summary()}); err != nil {
		workflow.GetLogger(ctx).Warn("the memo is not kept", "error", err)
	}
}

func (e *entity) search(ctx workflow.Context, updates ...temporal.SearchAttributeUpdate) {
	if err := workflow.UpsertTypedSearchAttributes(ctx, updates...); err != nil {
		workflow.GetLogger(ctx).Warn("search attributes are not kept", "error", err)
	}
}

// picture is what search attributes and memo are made of. Histories depend on when it
// changes: what is added here needs a version.
func (e *entity) picture() []string {
	out := []string{string(e.s.State), string(e.s.Health), e.s.Policy, e.s.Name, e.in.Site}
	for _, p := range e.s.Problems {
		out = append(out, p.Code)
	}
	return append(append(out, "plans"), e.s.Plans...)
}

// summary is a line for people.
func (e *entity) summary() string {
	text := fmt.Sprintf("%s: %s, %s; policy %s", e.s.Name, e.s.State, e.s.Health, e.s.Policy)
	if len(e.s.Plans) > 0 {
		text += "; plans " + strings.Join(e.s.Plans, ", ")
	}
	for _, p := range e.s.Problems {
		text += fmt.Sprintf("; %s %s", p.Code, p.Cause)
	}
	return text
}

func keyword(name, value string) temporal.SearchAttributeUpdate {
	return temporal.NewSearchAttributeKeyKeyword(name).ValueSet(value)
}
