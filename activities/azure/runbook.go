package azure

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/automation/armautomation"
	"github.com/google/uuid"
	"go.temporal.io/sdk/activity"

	"drover/activities/target"
	"drover/workflows/api"
)

const (
	maxOutput = 4 << 10 // bytes of a job's output that are kept: its end
	// maxJobs bounds the jobs of one step: each try that failed leaves one.
	maxJobs = 32
	// stopLimit is for stopping a job that ran out of time.
	stopLimit = 30 * time.Second
	// contextParameter is the runbook's parameter that has the plan's context.
	contextParameter = "RecoveryPlanContext"
)

// jobSpace is the root of the names of jobs (UUID version 5).
var jobSpace = uuid.MustParse("0f2b9d0e-2f0c-4f4e-9d0a-6472766a6f62")

// CheckRunbook says why a runbook cannot be run; it runs nothing.
func (c *Cloud) CheckRunbook(ctx context.Context, n string) error {
	if c.Automation == "" {
		return invalid("the configuration server's target has no automation account")
	}
	r, err := c.runbooks.Get(ctx, c.ResourceGroup, c.Automation, n, nil)
	if err != nil {
		return fault(err, "look at runbook %s of automation account %s", n, c.Automation)
	}
	if r.Properties == nil || value(r.Properties.State) == armautomation.RunbookStateNew {
		return invalid("runbook %s of automation account %s was never published", n, c.Automation)
	}
	return nil
}

// Runbook runs a plan's runbook to its end. The names of its jobs follow from the run
// and the step: a try after a worker's death goes on with the job that runs, or
// takes the result of the one that ended well; only after one that failed it starts
// another.
func (c *Cloud) Runbook(ctx context.Context, in api.RunbookInput) (api.ActionOutput, error) {
	if c.Automation == "" {
		return api.ActionOutput{}, invalid("the configuration server's target has no automation account")
	}
	begun := time.Now()
	n, err := c.job(ctx, in)
	if err != nil {
		return api.ActionOutput{}, err
	}
	status, exception, err := c.jobEnds(ctx, n)
	if err != nil {
		c.giveUp(ctx, n)
		return api.ActionOutput{}, err
	}
	out := api.ActionOutput{Took: api.Duration(time.Since(begun))}
	if r, err := c.jobs.GetOutput(ctx, c.ResourceGroup, c.Automation, n, nil); err == nil {
		out.Output = end(value(r.Value))
	} else {
		out.Output = "(its output could not be read)"
	}
	if status != armautomation.JobStatusCompleted {
		out.Exit = 1
		return out, &target.Fault{Code: api.CodeActionFailed, Text: fmt.Sprintf(
			"runbook %s: job %s ended as %s: %s", in.Runbook.Name, n, status, end(strings.TrimSpace(exception+"\n"+out.Output)))}
	}
	return out, nil
}

// end is the end of a text.
func end(s string) string {
	if len(s) > maxOutput {
		s = "..." + s[len(s)-maxOutput+3:]
	}
	return strings.ToValidUTF8(s, "?")
}

// job gives the job to wait for: one of an earlier try, or a new one.
func (c *Cloud) job(ctx context.Context, in api.RunbookInput) (string, error) {
	parameters, err := c.parameters(in)
	if err != nil {
		return "", err
	}
	for i := range maxJobs {
		n := uuid.NewSHA1(jobSpace, fmt.Appendf(nil, "%s\x00%s\x00%d", in.Run, in.Step, i)).String()
		have, err := c.jobs.Get(ctx, c.ResourceGroup, c.Automation, n, nil)
		if err == nil && !over(status(have.Job), armautomation.JobStatusCompleted) {
			return n, nil
		}
		if err == nil {
			continue // it failed
		}
		if !notFound(err) {
			return "", fault(err, "look for the job of runbook %s", in.Runbook.Name)
		}
		_, err = c.jobs.Create(ctx, c.ResourceGroup, c.Automation, n, armautomation.JobCreateParameters{
			Properties: &armautomation.JobCreateProperties{Runbook: &armautomation.RunbookAssociationProperty{Name: &in.Runbook.Name}, Parameters: parameters},
		}, nil)
		if err == nil {
			return n, nil
		}
		if _, again := c.jobs.Get(ctx, c.ResourceGroup, c.Automation, n, nil); again == nil {
			return n, nil // the reply was lost
		}
		return "", fault(err, "start runbook %s", in.Runbook.Name)
	}
	return "", &target.Fault{Code: api.CodeActionFailed, Text: fmt.Sprintf("runbook %s failed %d times in this step", in.Runbook.Name, maxJobs), Kind: target.ErrRefused}
}

func status(j armautomation.Job) armautomation.JobStatus {
	if j.Properties == nil {
		return ""
	}
	return value(j.Properties.Status)
}

// over says whether a job has ended, other than as is asked.
func over(s, but armautomation.JobStatus) bool {
	switch s {
	case armautomation.JobStatusCompleted, armautomation.JobStatusFailed, armautomation.JobStatusStopped, armautomation.JobStatusSuspended:
		return s != but
	}
	return false
}

// jobEnds waits for a job's end. A suspended one waits for a person who is not here.
func (c *Cloud) jobEnds(ctx context.Context, n string) (armautomation.JobStatus, string, error) {
	for {
		j, err := c.jobs.Get(ctx, c.ResourceGroup, c.Automation, n, nil)
		if err != nil {
			return "", "", fault(err, "look at job %s", n)
		}
		if s := status(j.Job); over(s, "") {
			return s, value(j.Properties.Exception), nil
		}
		if err := pause(ctx, c.Poll); err != nil {
			return "", "", err
		}
	}
}

// giveUp stops a job whose step was cancelled or ran out of time. When it is our
// worker that stops, the job goes on, for the next try.
func (c *Cloud) giveUp(ctx context.Context, n string) {
	if ctx.Err() == nil {
		return
	}
	if activity.IsActivity(ctx) {
		select {
		case <-activity.GetWorkerStopChannel(ctx):
			return
		default:
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
	defer cancel()
	if _, err := c.jobs.Stop(ctx, c.ResourceGroup, c.Automation, n, nil); err != nil {
		c.Logger.Warn("a job could not be stopped", "job", n, "error", fault(err, "stop job %s", n))
	}
}

// planContext is what the runbook gets, in the form of Azure Site Recovery, so that
// runbooks written for it go on working.
type planContext struct {
	RecoveryPlanName  string
	FailoverType      string               // Test, Planned or Unplanned
	FailoverDirection string               // PrimaryToSecondary or SecondaryToPrimary
	GroupID           string               `json:"GroupId"`
	VMMap             map[string]planOfOne `json:"VmMap"`
}

type planOfOne struct {
	SubscriptionID    string `json:"SubscriptionId"`
	ResourceGroupName string
	CloudServiceName  string
	RoleName          string // of the virtual machine in Azure; before its failover: on the source
	RecoveryPointID   string `json:"RecoveryPointId"`
}

func (c *Cloud) parameters(in api.RunbookInput) (map[string]*string, error) {
	p := planContext{
		RecoveryPlanName: in.Plan, FailoverType: "Unplanned", FailoverDirection: "PrimaryToSecondary", GroupID: in.Group,
		VMMap: map[string]planOfOne{},
	}
	switch in.Kind {
	case api.PlanTest:
		p.FailoverType = "Test"
	case api.PlanPlanned:
		p.FailoverType = "Planned"
	case api.PlanFailback:
		p.FailoverType, p.FailoverDirection = "Planned", "SecondaryToPrimary"
	}
	for _, m := range in.Machines {
		one := planOfOne{SubscriptionID: c.Subscription, ResourceGroupName: c.ResourceGroup, CloudServiceName: c.ResourceGroup, RoleName: m.Name}
		if m.TargetRun != "" {
			one.RoleName = name(target.Ref{Name: m.TargetName, Run: m.TargetRun})
		}
		if m.Point != 0 {
			one.RecoveryPointID = fmt.Sprint(m.Point)
		}
		p.VMMap[m.Machine.String()] = one
	}
	b, err := json.Marshal(p)
	if err != nil {
		return nil, fault(err, "make the context of runbook %s", in.Runbook.Name)
	}
	out := map[string]*string{}
	for k, v := range in.Runbook.Parameters {
		out[k] = &v
	}
	text := string(b)
	out[contextParameter] = &text
	return out, nil
}
