// Package replay keeps histories of real runs in git and replays them on today's
// workflow code, so that a change that would break a running workflow fails a test
// and not a failover. `make histories` records them anew; what was recorded before is kept
// beside it, as testdata/cycle-1 and so on, so that what older releases began goes on, too.
package replay

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	enums "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/history/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"google.golang.org/protobuf/encoding/protojson"

	"drover/workflows/api"
)

const (
	perType = 3          // histories kept of each workflow type
	plans   = 10         // of plan runs, which differ most
	suffix  = ".json.gz" // of their files
)

// identity says which process wrote an event, with its host's name.
var identity = regexp.MustCompile(`"identity":\s*"[^"]*"`)

// Record writes histories of all workflow types that a Temporal server has seen into
// a directory, as <type>-<n>.json.gz.
func Record(ctx context.Context, address, dir string) error {
	c, err := client.Dial(client.Options{HostPort: address})
	if err != nil {
		return fmt.Errorf("record histories: %w", err)
	}
	defer c.Close()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	list, err := c.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{PageSize: 1000})
	if err != nil {
		return fmt.Errorf("record histories: %w", err)
	}
	seen := map[string]int{}
	for _, e := range list.GetExecutions() {
		name := e.GetType().GetName()
		most := perType
		if name == api.WorkflowRecoveryPlan {
			most = plans
		}
		if seen[name]++; seen[name] > most {
			continue
		}
		file := filepath.Join(dir, fmt.Sprintf("%s-%d%s", name, seen[name], suffix))
		if err := save(ctx, c, e.GetExecution().GetWorkflowId(), e.GetExecution().GetRunId(), file); err != nil {
			return fmt.Errorf("record %s: %w", e.GetExecution().GetWorkflowId(), err)
		}
	}
	return nil
}

func save(ctx context.Context, c client.Client, id, run, file string) error {
	var h history.History
	for i := c.GetWorkflowHistory(ctx, id, run, false, enums.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT); i.HasNext(); {
		e, err := i.Next()
		if err != nil {
			return err
		}
		h.Events = append(h.Events, e)
	}
	b, err := protojson.Marshal(&h)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, err = z.Write(identity.ReplaceAll(b, []byte(`"identity":"drover"`)))
	if err := errors.Join(err, z.Close()); err != nil {
		return err
	}
	return os.WriteFile(file, out.Bytes(), 0o600)
}
