package replicatest

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"drover/datapath/changeset"
	"drover/datapath/ident"
	"drover/datapath/replica"
)

// modelSteps bounds one run of the model.
const modelSteps = 14

// testModel does random things to a replica and, after each, compares all kept
// points with what was remembered of them.
func testModel(t *testing.T, open opener) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		require.NoError(t, err)
		m := newModel(t, open(t, dir))
		defer func() {
			require.NoError(t, m.writer.Close())
			require.NoError(t, os.RemoveAll(dir))
		}()
		m.base()
		epoch, seed := ident.Epoch(1), uint64(1000)
		for range rapid.IntRange(1, modelSteps).Draw(rt, "steps") {
			switch rapid.IntRange(0, 9).Draw(rt, "action") {
			case 0:
				epoch += ident.Epoch(rapid.IntRange(0, 1).Draw(rt, "raise"))
				m.store = open(t, dir)
				m.reopen(epoch)
			case 1:
				rescan := rapid.Bool().Draw(rt, "rescan")
				require.NoError(t, m.writer.BeginGeneration(t.Context(), m.spec.Disks, rescan, nil))
			case 2, 3:
				m.thin(rt)
			default:
				seed += 100
				m.randomSet(rt, seed)
			}
			m.check()
		}
	})
}

// newModel is newMachine without the clean-up at the test's end.
func newModel(t *testing.T, store replica.Store) *machine {
	t.Helper()
	m := &machine{t: t, store: store, spec: Spec(), points: map[ident.Seq][][]byte{}}
	m.reopen(1)
	for _, d := range m.spec.Disks {
		m.now = append(m.now, make([]byte, d.Size))
	}
	return m
}

func (m *machine) thin(rt *rapid.T) {
	points := m.writer.State().Points
	if len(points) < 2 {
		return
	}
	var gone []ident.Seq
	for _, p := range points[:len(points)-1] {
		if rapid.IntRange(0, 2).Draw(rt, "delete") == 0 {
			gone = append(gone, p.ID)
		}
	}
	m.remove(gone...)
}

func (m *machine) randomSet(rt *rapid.T, seed uint64) {
	b := m.after(changeset.Delta)
	cut := Crash()
	if !m.writer.State().Complete {
		b = m.after(changeset.Base)
		cut.Complete = rapid.Bool().Draw(rt, "complete")
	}
	for i := range rapid.IntRange(0, 5).Draw(rt, "extents") {
		disk := rapid.IntRange(0, len(m.now)-1).Draw(rt, "disk")
		size := int64(len(m.now[disk]))
		first := rapid.Int64Range(0, (size-1)/Block).Draw(rt, "first")
		length := min(rapid.Int64Range(1, 12).Draw(rt, "blocks")*Block, size-first*Block)
		if rapid.IntRange(0, 2).Draw(rt, "zero") == 0 {
			b.Zero(disk, first*Block, length)
			continue
		}
		data := Pattern(seed+uint64(i), length)
		if rapid.IntRange(0, 3).Draw(rt, "holes") == 0 { // zeros inside data
			clear(data[:min(Block, len(data))])
		}
		b.Write(disk, first*Block, data)
	}
	m.apply(b.Cut(cut))
}
