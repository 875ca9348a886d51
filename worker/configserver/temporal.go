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

// searchAttributes are the ones that the workflows set.
var searchAttributes = []string{api.SearchState, api.SearchHealth, api.SearchPolicy, api.SearchMachine, api.SearchPlan}

// registerSearchAttributes makes the namespace know our search attributes. Where
// an administrator has to do it the attempt is refused, which is only logged.
func (s *server) registerSearchAttributes(ctx context.Context, c client.Client) error {
	operator := c.OperatorService()
	namespace := s.config.Temporal.Namespace
	list, err := operator.ListSearchAttributes(ctx, &operatorservice.ListSearchAttributesRequest{Namespace: namespace})
	if err != nil {
		return fmt.Errorf("list the search attributes of namespace %s: %w", namespace, err)
	}
	missing := map[string]enumspb.IndexedValueType{}
	for _, name := range searchAttributes {
		if _, ok := list.GetCustomAttributes()[name]; !ok {
			missing[name] = enumspb.INDEXED_VALUE_TYPE_KEYWORD
		}
	}
	if len(missing) == 0 {
		return nil
	}
	_, err = operator.AddSearchAttributes(ctx, &operatorservice.AddSearchAttributesRequest{Namespace: namespace, SearchAttributes: missing})
	if err != nil {
		s.log.Warn("the search attributes could not be registered; ask the administrator of Temporal to add them as Keyword",
			"namespace", namespace, "missing", len(missing), "error", err.Error())
	}
	return nil
}

// startVault starts the vault's workflow unless it runs already.
func startVault(ctx context.Context, c client.Client) error {
	if _, err := c.ExecuteWorkflow(ctx, control.VaultStart(), api.WorkflowVault, api.VaultInput{}); err != nil {
		return fmt.Errorf("start the vault: %w", err)
	}
	return nil
}
