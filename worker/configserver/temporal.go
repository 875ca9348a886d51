package configserver

import (
	"context"
	"fmt"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/operatorservice/v1"
	"go.temporal.io/sdk/client"

	"drover/activities/control"
	"drover/workflows/api"
)

func (s *server) registerSearchAttributes(ctx context.Context, c client.Client) error {
	return searchAttributes(ctx, c.OperatorService(), s.config.Temporal.Namespace)
}

// searchAttributes makes the namespace know our search attributes. Where they are
// missing and only an administrator may add them, the worker does not start: every
// workflow would stand still at its first step.
func searchAttributes(ctx context.Context, operator operatorservice.OperatorServiceClient, namespace string) error {
	list, err := operator.ListSearchAttributes(ctx, &operatorservice.ListSearchAttributesRequest{Namespace: namespace})
	if err != nil {
		return fmt.Errorf("list the search attributes of namespace %s: %w", namespace, err)
	}
	add := map[string]enumspb.IndexedValueType{}
	var missing []api.SearchAttribute
	for _, a := range api.SearchAttributes() {
		have, ok := list.GetCustomAttributes()[a.Name]
		if ok && have != kind(a) {
			return fmt.Errorf("the search attribute %s of namespace %s has the type %s, it must be %s: remove it (temporal operator search-attribute remove), then %s",
				a.Name, namespace, have, a.Kind(), api.SearchAttributesCommand(namespace, []api.SearchAttribute{a}))
		}
		if !ok {
			add[a.Name], missing = kind(a), append(missing, a)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	_, err = operator.AddSearchAttributes(ctx, &operatorservice.AddSearchAttributesRequest{Namespace: namespace, SearchAttributes: add})
	if err != nil {
		return fmt.Errorf("namespace %s lacks %d search attributes and they could not be registered: %w; have the administrator of Temporal run: %s",
			namespace, len(missing), err, api.SearchAttributesCommand(namespace, missing))
	}
	return nil
}

func kind(a api.SearchAttribute) enumspb.IndexedValueType {
	if a.List {
		return enumspb.INDEXED_VALUE_TYPE_KEYWORD_LIST
	}
	return enumspb.INDEXED_VALUE_TYPE_KEYWORD
}

// startVault starts the vault's workflow unless it runs already.
func startVault(ctx context.Context, c client.Client) error {
	if _, err := c.ExecuteWorkflow(ctx, control.VaultStart(), api.WorkflowVault, api.VaultInput{}); err != nil {
		return fmt.Errorf("start the vault: %w", err)
	}
	return nil
}
