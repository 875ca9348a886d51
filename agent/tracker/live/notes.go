package live

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"unsafe"

	"drover/agent/tracker/changes"
	"drover/datapath/changeset"
)

const (
	// A note is in two slots of the source's memory, written in turn, so that a process
	// that is killed while it writes one leaves the other.
	slots    = 2
	slotSize = 32 << 10
	// A slot: number u64 (0: empty), length u32, CRC-32C of number, length and text u32, text.
	slotHead = 8 + 4 + 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// notes is what is kept beside the bitmaps.
type notes struct {
	mem    []byte
	number uint64 // of the newest
	note   []byte // the caller's
	known  bool   // what an earlier process has known is known
}

// kept is the text of a slot.
type kept struct {
	Devices []changes.Device `json:"devices"`
	Disks   []changeset.Disk `json:"disks"`
	Note    []byte           `json:"note,omitempty"` // empty: nothing is known
}

// bitmap is a bitmap in a source's memory.
func bitmap(source changes.Source, device int, name string, size int64) (changes.Bitmap, bool, error) {
	words := changes.Words(size)
	mem, kept, err := source.Memory(device, name, 8*words)
	if err != nil {
		return nil, false, err
	}
	if len(mem) < 8*words || uintptr(unsafe.Pointer(unsafe.SliceData(mem)))%8 != 0 { //nolint:gosec // only looks at the alignment
		return nil, false, fmt.Errorf("memory %q of device %d: %d bytes, not aligned words", name, device, len(mem))
	}
	return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(mem))), words), kept, nil //nolint:gosec // aligned and long enough
}

// open finds the memory: with the device of the lowest numbers, whatever the order.
func (n *notes) open(source changes.Source, devices []changes.Device) (err error) {
	*n = notes{}
	home := 0
	for i, d := range devices {
		if h := devices[home]; d.Major < h.Major || d.Major == h.Major && d.Minor < h.Minor {
			home = i
		}
	}
	n.mem, _, err = source.Memory(home, "note", slots*slotSize)
	if err == nil && len(n.mem) < slots*slotSize {
		err = fmt.Errorf("memory for notes: %d bytes, want %d", len(n.mem), slots*slotSize)
	}
	return err
}

// load reads the newest note, if it is of these devices in this order.
func (n *notes) load(devices []changes.Device) ([]changeset.Disk, bool) {
	var newest kept
	for slot := range slots {
		b := n.mem[slot*slotSize:][:slotSize]
		number, length := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint32(b[8:])
		if number <= n.number || length > slotSize-slotHead {
			continue
		}
		text := b[slotHead:][:length]
		var k kept
		if sum(b[:12], text) != binary.LittleEndian.Uint32(b[12:]) || json.Unmarshal(text, &k) != nil {
			continue
		}
		n.number, newest = number, k
	}
	if len(newest.Note) == 0 || !same(newest.Devices, devices) || len(newest.Disks) != len(devices) {
		return nil, false
	}
	n.note = newest.Note
	return newest.Disks, true
}

// save writes the next slot.
func (n *notes) save(devices []changes.Device, disks []changeset.Disk, note []byte) {
	n.note = append([]byte(nil), note...)
	text, err := json.Marshal(kept{devices, disks, note})
	if err != nil || len(text) > slotSize-slotHead { // it cannot be kept
		n.forget()
		return
	}
	n.number++
	b := n.mem[int(n.number%slots)*slotSize:][:slotSize]
	clear(b[:slotHead]) // void while it is written
	copy(b[slotHead:], text)
	binary.LittleEndian.PutUint32(b[8:], uint32(len(text)))
	var head [12]byte
	binary.LittleEndian.PutUint64(head[:], n.number)
	copy(head[8:], b[8:12])
	binary.LittleEndian.PutUint32(b[12:], sum(head[:], text))
	binary.LittleEndian.PutUint64(b, n.number)
}

// forget makes void what was kept, in all slots: none may be taken for the newest.
func (n *notes) forget() {
	n.note = nil
	for slot := range slots {
		if n.mem != nil {
			clear(n.mem[slot*slotSize:][:slotHead])
		}
	}
}

func sum(head, text []byte) uint32 {
	return crc32.Update(crc32.Checksum(head, castagnoli), castagnoli, text)
}
