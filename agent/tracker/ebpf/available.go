//go:build linux

package ebpf

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// The oldest kernel whose programs have atomic operations that give the old value.
const (
	minMajor, minMinor = 5, 12
	minVersion         = minMajor<<16 | minMinor<<8
	lockdown           = "/sys/kernel/security/lockdown"
)

// Available says in a sentence why this source cannot be used on this machine; nil if
// it can.
func Available() error {
	version, err := features.LinuxVersionCode()
	if err != nil {
		return fmt.Errorf("the kernel's version is unknown: %w", err)
	}
	if version < minVersion {
		return fmt.Errorf("the kernel is %d.%d, and tracking by eBPF takes %d.%d", version>>16, version>>8&0xff, minMajor, minMinor)
	}
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return fmt.Errorf("the kernel does not describe its types (BTF, CONFIG_DEBUG_INFO_BTF): %w", err)
	}
	if err := fits(kernel); err != nil {
		return err
	}
	p, err := load()
	if err == nil {
		return p.close()
	}
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return denied(err)
	}
	return fmt.Errorf("the kernel refuses the programs: %w", brief(err))
}

// fits checks what the programs take for granted.
func fits(kernel *btf.Spec) error {
	for event, arguments := range map[string]int{"issue": 1, "complete": 3, "requeue": 1} {
		var def *btf.Typedef
		if err := kernel.TypeByName("btf_trace_block_rq_"+event, &def); err != nil {
			return fmt.Errorf("the kernel has no event block_rq_%s: %w", event, err)
		}
		p, _ := def.Type.(*btf.Pointer)
		if p == nil {
			return fmt.Errorf("the kernel's event block_rq_%s is of an unknown kind", event)
		}
		f, _ := p.Target.(*btf.FuncProto)
		if f == nil || len(f.Params) != 1+arguments { // the first is the tracer's
			return fmt.Errorf("the kernel's event block_rq_%s has other arguments than it had from %d.%d on", event, minMajor, minMinor)
		}
	}
	return nil
}

// denied says who denies it.
func denied(err error) error {
	if os.Geteuid() != 0 {
		return errors.New("tracking by eBPF takes root (CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN)")
	}
	text, _ := os.ReadFile(lockdown) // a hint
	if strings.Contains(string(text), "[confidentiality]") {
		return errors.New("the kernel is locked down (confidentiality), which forbids tracking by eBPF")
	}
	return fmt.Errorf("the system forbids tracking by eBPF (a container, a security module, or a capability that is missing: CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN): %w", brief(err))
}

// brief leaves the verifier's log out of an error, but for its end.
func brief(err error) error {
	var v *ebpf.VerifierError
	if !errors.As(err, &v) {
		return err
	}
	last := ""
	if n := len(v.Log); n > 0 {
		last = ": " + v.Log[n-1]
	}
	return fmt.Errorf("%w%s", v.Cause, last)
}
