package failpoint

import (
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNamesAreUnique(t *testing.T) {
	seen := map[string]bool{}
	for _, n := range slices.Concat(Names, Enrolment, Freeze) {
		require.False(t, seen[n], n)
		seen[n] = true
	}
}

// TestHit reaches a place twice, in this process and in one that is to end there.
func TestHit(t *testing.T) {
	Hit(Ack)
	Hit(Ack)
	if os.Getenv(Variable) != "" {
		return
	}
	for at, dead := range map[string]bool{Ack + ":2": true, Ack + ":3": false, Store + ":1": false, "": false} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestHit$")
		cmd.Env = append(os.Environ(), Variable+"="+at)
		if at == "" {
			cmd.Env = append(os.Environ(), Variable+"=nowhere:1") // refused, or not looked at
		}
		err := cmd.Run()
		var exit *exec.ExitError
		switch {
		case !Enabled:
			require.NoError(t, err, "without the tag nothing happens")
		case dead:
			require.ErrorAs(t, err, &exit)
			require.Equal(t, syscall.SIGKILL, exit.Sys().(syscall.WaitStatus).Signal())
		case at == "":
			require.ErrorAs(t, err, &exit)
			require.Equal(t, 2, exit.ExitCode())
		default:
			require.NoError(t, err)
		}
	}
}
