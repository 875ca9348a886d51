package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	"drover/tests/lab"
	"drover/workflows/api"
)

// Report is build/demo/report.json.
type Report struct {
	Proven   bool             `json:"proven"` // every step went well and every proof held
	Started  time.Time        `json:"started"`
	Seconds  float64          `json:"seconds"`
	Steps    []StepReport     `json:"steps"`
	Machines []*MachineReport `json:"machines"`
}

// StepReport is one step of the demo.
type StepReport struct {
	Name    string   `json:"name"`
	OK      bool     `json:"ok"`
	Seconds float64  `json:"seconds"`
	Facts   []string `json:"facts,omitempty"`
	Error   string   `json:"error,omitempty"`
}

// MachineReport is what happened to one machine.
type MachineReport struct {
	Name      string `json:"name"`
	Disks     int    `json:"disks"`
	DiskBytes int64  `json:"diskBytes"`

	Initial   *api.Transfer `json:"initialReplication,omitempty"`
	Resync    *api.Transfer `json:"resync,omitempty"`
	Reprotect *api.Transfer `json:"reprotect,omitempty"`
	Reenable  *api.Transfer `json:"reenable,omitempty"`

	RPO         api.Duration `json:"rpo"` // at the failover: what was lost
	RTO         api.Duration `json:"rto"` // from the request to the checked machine
	FailbackRTO api.Duration `json:"failbackRto"`

	Proofs  map[string]lab.Proof `json:"proofs"` // by what was proven
	Checks  []Check              `json:"checks"` // single disks and file systems
	Verdict string               `json:"verdict"`
}

// Check is one comparison of a recovered disk.
type Check struct {
	What string `json:"what"`
	OK   bool   `json:"ok"`
	Note string `json:"note,omitempty"`
}

// judge sets the verdicts. A machine that proved nothing is not proven.
func (r *Report) judge() {
	r.Proven = len(r.Steps) > 0 && len(r.Machines) > 0
	for _, s := range r.Steps {
		r.Proven = r.Proven && s.OK
	}
	for _, m := range r.Machines {
		m.Verdict = "proven"
		ok := len(m.Proofs) > 0 && len(m.Checks) > 0
		for _, p := range m.Proofs {
			ok = ok && p.OK()
		}
		for _, c := range m.Checks {
			ok = ok && c.OK
		}
		if !ok {
			m.Verdict = "NOT PROVEN"
			r.Proven = false
		}
	}
}

func (r *Report) save(dir string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "report.json"), append(b, '\n'), 0o644)
}

// points counts the recovery points that were proven.
func (m *MachineReport) points() int {
	n := 0
	for _, p := range m.Proofs {
		n += p.Matched
	}
	return n
}

// moved gives the bytes on the wire of a base pass, for the table.
func moved(t *api.Transfer) string {
	if t == nil {
		return "-"
	}
	return bytes(t.WireBytes)
}
