package vsphere

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// The simulator watches idle sessions for a while after they ended.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/vmware/govmomi/simulator.SessionIdleWatch.func1"))
}
