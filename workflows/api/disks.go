package api

import (
	"slices"
	"strings"

	"drover/datapath/ident"
)

// GuestDisks puts together what vCenter, the protection and the agent know of the
// machine's disks. Without a report of the agent there is nothing to say.
func (s MachineStatus) GuestDisks() []GuestDisk {
	if s.Agent == nil {
		return nil
	}
	of := s.byBacking()
	var out []GuestDisk
	seen := map[ident.DiskID]bool{}
	for _, d := range s.Agent.Disks {
		g := GuestDisk{AgentDisk: d, State: DiskOther}
		if vm, ok := of[plainUUID(d.BackingUUID)]; ok && d.BackingUUID != "" && !seen[vm.ID] {
			seen[vm.ID] = true
			g.ID, g.Label = vm.ID, vm.Label
		}
		out = append(out, s.judged(g))
	}
	for _, list := range [][]VMDisk{s.Protected, s.VM.Disks} {
		for _, d := range list {
			if !seen[d.ID] {
				seen[d.ID] = true
				out = append(out, s.judged(GuestDisk{ID: d.ID, Label: d.Label, Unseen: true,
					AgentDisk: AgentDisk{BackingUUID: d.BackingUUID, Size: d.Size}}))
			}
		}
	}
	return out
}

// byBacking gives the machine's disks by how the agent that reported finds them: the one
// on the target side has disks of other names.
func (s MachineStatus) byBacking() map[string]VMDisk {
	out := map[string]VMDisk{}
	for _, list := range [][]VMDisk{s.VM.Disks, s.Protected} {
		for _, d := range list {
			out[plainUUID(d.BackingUUID)] = d
		}
	}
	if t := s.Target; t != nil && strings.EqualFold(t.Instance, s.Agent.Instance) {
		for _, d := range t.Disks {
			i := slices.IndexFunc(s.Protected, func(p VMDisk) bool { return p.ID == d.ID })
			if i >= 0 {
				out[plainUUID(d.BackingUUID)] = s.Protected[i]
			}
		}
	}
	return out
}

// judged says what becomes of a disk.
func (s MachineStatus) judged(g GuestDisk) GuestDisk {
	i := slices.IndexFunc(s.Protected, func(d VMDisk) bool { return !g.ID.IsZero() && d.ID == g.ID })
	known := slices.IndexFunc(s.VM.Disks, func(d VMDisk) bool { return !g.ID.IsZero() && d.ID == g.ID })
	gone := g.Unseen && !s.Agent.Truncated || !g.Gone.IsZero()
	if i >= 0 {
		g.ProtectedSize = s.Protected[i].Size
		switch {
		case gone:
			g.State = DiskMissing
		case g.Size > g.ProtectedSize && !g.Unseen:
			g.State = DiskGrown
		case g.Size < g.ProtectedSize && !g.Unseen && g.Size > 0:
			g.State = DiskShrunk
		default:
			g.State = DiskProtected
		}
		return g
	}
	switch {
	case !g.Gone.IsZero():
		g.State = DiskGone
	case known >= 0 && s.IsExcluded(s.VM.Disks[known]):
		g.State = DiskExcluded
	case known >= 0:
		g.State = DiskNew
	default:
		g.State = DiskOther
	}
	return g
}

// IsExcluded reports whether the operator does not want the disk protected.
func (s MachineStatus) IsExcluded(d VMDisk) bool {
	return slices.Contains(s.Excluded, d.Label) || slices.Contains(s.Excluded, d.BackingUUID)
}

// plainUUID makes backing uuids comparable: case and dashes differ by who writes them.
func plainUUID(s string) string { return strings.ToLower(strings.ReplaceAll(s, "-", "")) }
