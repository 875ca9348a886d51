package cli

import "go.temporal.io/api/workflowservice/v1"

// listPage is how many executions one call gives.
const listPage = 500

func listRequest(namespace, visibility string, page []byte) *workflowservice.ListWorkflowExecutionsRequest {
	return &workflowservice.ListWorkflowExecutionsRequest{
		Namespace: namespace, Query: visibility, PageSize: listPage, NextPageToken: page,
	}
}
