package azure

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"

	"drover/activities/target"
	"drover/datapath/ident"
	"drover/workflows/api"
)

const (
	dialTimeout = 5 * time.Second
	maxEvidence = 200
)

// Check says whether a started machine is up: it runs, and there is the evidence that
// was asked for. From a test's isolated network neither an agent nor a port can be
// reached: there, what Azure sees must do, or a command.
func (c *Cloud) Check(ctx context.Context, ref target.Ref) (ready bool, evidence string, err error) {
	vm, err := c.settledMachine(ctx, ref)
	if err != nil {
		return false, "", err
	}
	if !ours(vm.Tags, ref) {
		return false, "", notOurs("virtual machine", name(ref))
	}
	power, agent, err := c.power(ctx, ref)
	if err != nil {
		return false, "", err
	}
	if power != powerRunning {
		return false, fmt.Sprintf("its power state is %q", power), nil
	}
	evidence = "Azure says that it runs"
	if agent != "" {
		evidence += ", and of Azure's agent: " + agent
	}
	test := tag(vm.Tags, target.TagTest) == "true"
	kind, port, _ := strings.Cut(tag(vm.Tags, tagHealth), ":")
	switch {
	case kind == api.HealthCommand:
		return c.runCommand(ctx, ref, tag(vm.Tags, tagSystem))
	case kind == api.HealthAgent && !test:
		return c.agentCalled(vm)
	case kind == api.HealthTCP && !test:
		return c.portAnswers(ctx, ref, port)
	}
	return true, evidence, nil
}

// agentCalled: the agent on this very machine was heard since it was made.
func (c *Cloud) agentCalled(vm armcompute.VirtualMachine) (bool, string, error) {
	machine, err := ident.ParseMachineID(tag(vm.Tags, target.TagMachine))
	if err != nil || c.Heard == nil {
		return false, "", invalid("the health check by agent is not possible here")
	}
	instance := guestUUID(value(vm.Properties.VMID), tag(vm.Tags, tagGeneration))
	at, ok := c.Heard(machine, instance)
	if !ok {
		return false, "no agent has called from it", nil
	}
	return true, "its agent called at " + at.UTC().Format(time.RFC3339), nil
}

func (c *Cloud) portAnswers(ctx context.Context, ref target.Ref, port string) (bool, string, error) {
	card, err := c.settledCard(ctx, ref)
	if err != nil {
		return false, "", err
	}
	address := net.JoinHostPort(addressOf(card), port)
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", address)
	if err != nil {
		return false, address + " does not answer", nil //nolint:nilerr // that is the finding
	}
	_ = conn.Close()
	return true, address + " answers", nil
}

// runCommand has the guest say its name. It needs Azure's agent in the guest, and no
// network.
func (c *Cloud) runCommand(ctx context.Context, ref target.Ref, system string) (bool, string, error) {
	in := armcompute.RunCommandInput{CommandID: to.Ptr("RunShellScript"), Script: []*string{to.Ptr("hostname")}}
	if system == string(armcompute.OperatingSystemTypesWindows) {
		in.CommandID = to.Ptr("RunPowerShellScript")
	}
	r, err := await(ctx, c, "command", func(token string) (*runtime.Poller[armcompute.VirtualMachinesClientRunCommandResponse], error) {
		return c.machines.BeginRunCommand(ctx, c.ResourceGroup, name(ref), in, &armcompute.VirtualMachinesClientBeginRunCommandOptions{ResumeToken: token})
	})
	if err != nil {
		err = fault(err, "run a command in %s", name(ref))
		if hasCode(err, api.CodeTargetDenied) || ctx.Err() != nil {
			return false, "", err
		}
		return false, err.Error(), nil // its agent may not be up yet
	}
	if len(r.Value) == 0 {
		return false, "a command in it said nothing", nil
	}
	if v := r.Value[0]; !strings.HasSuffix(value(v.Code), "/succeeded") {
		return false, "a command in it ended with " + value(v.Code), nil
	}
	said := strings.Join(strings.Fields(value(r.Value[0].Message)), " ")
	return true, "a command ran in it: " + strconv.Quote(said[:min(len(said), maxEvidence)]), nil
}
