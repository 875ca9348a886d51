package main

import (
	"fmt"
	"io"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"

	"drover/worker/controlserver/admin"
)

// printStatus shows what is enrolled, a line per agent instance or server.
func printStatus(w io.Writer, s admin.Status) error {
	if _, err := fmt.Fprintf(w, "configuration server %s, CA %s\n", s.Name, s.Fingerprint); err != nil {
		return err
	}
	t := table.NewWriter()
	t.AppendHeader(table.Row{"Role", "Name", "Instance", "State", "Heard of", "Version", "Certificate until"})
	for _, p := range s.Peers {
		state := "never heard of"
		if p.Revoked {
			state = "revoked"
		}
		if len(p.Heard) == 0 {
			t.AppendRow(table.Row{p.Role, p.Name, p.Instance, state, "", "", p.Expires.Format(time.RFC3339)})
		}
		for _, h := range p.Heard {
			if !p.Revoked {
				state = h.State
			}
			ago := s.Time.Sub(h.LastSeen).Round(time.Second).String() + " ago"
			t.AppendRow(table.Row{p.Role, p.Name, h.Instance, state, ago, h.Version, p.Expires.Format(time.RFC3339)})
		}
	}
	_, err := fmt.Fprintln(w, t.Render())
	return err
}
