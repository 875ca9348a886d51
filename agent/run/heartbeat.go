package run

import (
	"bufio"
	"context"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"drover/agent/controlapi"
	"drover/agent/disk"
)

// maxDetail bounds what a heartbeat says for people, in bytes.
const maxDetail = 400

// heartbeats tells the configuration server that the agent lives, and what it sees.
func (a *Agent) heartbeats(ctx context.Context) error {
	ticker := time.NewTicker(heartbeatEvery)
	defer ticker.Stop()
	var told time.Time // of the inventory
	away := false
	for ctx.Err() == nil {
		hb := a.heartbeat()
		if time.Since(told) > inventoryEvery {
			hb.Inventory = a.inventory()
		}
		_, err := a.control.Heartbeat(ctx, hb)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !away:
			a.log.Warn("the configuration server does not take the heartbeat; replication goes on", "error", err.Error())
		case err == nil && away:
			a.log.Info("the configuration server takes heartbeats again")
		}
		if err == nil && hb.Inventory != nil {
			told = time.Now()
		}
		away = err != nil
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
	return nil
}

func (a *Agent) heartbeat() controlapi.Heartbeat {
	as, _ := a.assigned.get()
	hb := controlapi.Heartbeat{Instance: a.config.Instance, Version: a.version, Time: time.Now().UTC(), State: "standby", Detail: as.Reason}
	if as.Action == controlapi.ActionReplicate {
		st := a.source.State()
		hb.State, hb.Detail = st.Word, st.Detail
	}
	if len(hb.Detail) > maxDetail {
		hb.Detail = strings.ToValidUTF8(hb.Detail[:maxDetail], "")
	}
	return hb
}

// inventory describes the machine as far as it can be seen.
func (a *Agent) inventory() *controlapi.Inventory {
	in := &controlapi.Inventory{OS: osName(), Kernel: kernel(), BootID: line("/proc/sys/kernel/random/boot_id"), Tracker: "scan: reads the disks for every recovery point"}
	in.Hostname, _ = os.Hostname()
	found, err := a.finder.List()
	if err != nil {
		a.log.Warn("not all disks could be listed", "error", err.Error())
	}
	for _, f := range found {
		d, err := disk.Open(f.Path)
		if err != nil {
			a.log.Warn("a disk cannot be read", "disk", f.BackingUUID, "error", err.Error())
			continue
		}
		in.Disks = append(in.Disks, controlapi.InventoryDisk{BackingUUID: f.BackingUUID, Path: f.Path, Size: d.Size()})
		_ = d.Close() // only its size was wanted
	}
	return in
}

func line(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// osName is the distribution's own name for itself.
func osName() string {
	f, err := os.Open("/etc/os-release")
	if err != nil {
		return runtime.GOOS
	}
	defer func() { _ = f.Close() }() // only read
	for s := bufio.NewScanner(f); s.Scan(); {
		if name, ok := strings.CutPrefix(s.Text(), "PRETTY_NAME="); ok {
			return strings.Trim(name, `"`)
		}
	}
	return runtime.GOOS
}

func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}
