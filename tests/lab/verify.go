package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"drover/datapath/attest"
	"drover/datapath/azstorage"
	"drover/datapath/stream"
)

// ReadRecord reads the record that `drover verify --record` wrote; it checks nothing.
func ReadRecord(file string) (stream.Record, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return stream.Record{}, err
	}
	signed, err := attest.Parse(text)
	if err != nil {
		return stream.Record{}, err
	}
	return attest.Read(signed)
}

// RecoverVerify runs `drover-recover verify` on a store, with the vault's authority and a
// record's file (empty: the newest in the store), and gives what it said.
func (l *Lab) RecoverVerify(ctx context.Context, store, machine, record string) (string, error) {
	args := []string{"verify", machine, "--store", l.Path(store), "--ca", l.Path("config-server", "ca", "cert.pem")}
	if l.Azure != "" && store == SeedContainer {
		args[3] = l.Azure + "/" + store
		args = append(args, "--azure-auth", azstorage.EmulatorKey)
	}
	if record != "" {
		args = append(args, "--record", record)
	}
	out, err := exec.CommandContext(ctx, filepath.Join(l.Bin, "drover-recover"), args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("drover-recover verify %s: %w: %s", machine, err, out)
	}
	return string(out), err
}
