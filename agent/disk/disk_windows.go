package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/windows"

	"drover/agent/controlapi"
	"drover/agent/tracker/changes"
)

// Control codes and what they take; winioctl.h.
const (
	ioctlLength        = 0x0007405C // IOCTL_DISK_GET_LENGTH_INFO
	ioctlProperty      = 0x002D1400 // IOCTL_STORAGE_QUERY_PROPERTY
	ioctlNumber        = 0x002D1080 // IOCTL_STORAGE_GET_DEVICE_NUMBER
	ioctlExtents       = 0x00560000 // IOCTL_VOLUME_GET_VOLUME_DISK_EXTENTS
	allowExtended      = 0x00090083 // FSCTL_ALLOW_EXTENDED_DASD_IO
	propertyDevice     = 0
	propertyIdentifier = 2
	maxAnswer          = 4 << 10 // bytes
	maxDrives          = 128
	maxVolumes         = 1024
	maxName            = 1 << 10 // characters of names of a volume
)

// isDevice reports whether a path is a device's, not a file's.
func isDevice(path string) bool {
	return strings.HasPrefix(path, `\\.\`) || strings.HasPrefix(path, `\\?\`)
}

// Open opens a physical drive (\\.\PhysicalDriveN), a volume (\\?\Volume{...}, without
// a backslash at the end), a shadow copy's device or an image file read-only. Devices
// are read around the cache.
func Open(path string) (*Disk, error) {
	d := &Disk{path: path, image: !isDevice(path)}
	flags := uint32(windows.FILE_FLAG_NO_BUFFERING)
	if d.image {
		info, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("open disk: %w", err)
		}
		if !info.Mode().IsRegular() {
			return nil, fmt.Errorf("open disk %s: neither a device nor an image file", path)
		}
		flags = windows.FILE_ATTRIBUTE_NORMAL
	}
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return nil, fmt.Errorf("open disk %q: %w", path, err)
	}
	share := uint32(windows.FILE_SHARE_READ | windows.FILE_SHARE_WRITE | windows.FILE_SHARE_DELETE)
	h, err := windows.CreateFile(name, windows.GENERIC_READ, share, nil, windows.OPEN_EXISTING, flags, 0)
	if err != nil {
		return nil, fmt.Errorf("open disk %s: %w", path, err)
	}
	d.file = os.NewFile(uintptr(h), path)
	if !d.image {
		_, _ = control(d.file, allowExtended, nil, 0) // volumes alone know it; without it the last sectors of one may not be read
	}
	if d.size, err = d.CurrentSize(); err != nil {
		return nil, errors.Join(err, d.file.Close())
	}
	return d, nil
}

// control asks a device, and gives its answer of at most so many bytes.
func control(f *os.File, code uint32, in []byte, most int) ([]byte, error) {
	out := make([]byte, most)
	var inAt, outAt *byte
	if len(in) > 0 {
		inAt = &in[0]
	}
	if most > 0 {
		outAt = &out[0]
	}
	var n uint32
	if err := windows.DeviceIoControl(windows.Handle(f.Fd()), code, inAt, uint32(len(in)), outAt, uint32(most), &n, nil); err != nil {
		return nil, err
	}
	return out[:n], nil
}

// property asks what a device says of itself.
func property(f *os.File, id uint32) ([]byte, error) {
	query := make([]byte, 12) // STORAGE_PROPERTY_QUERY, of the kind PropertyStandardQuery
	binary.LittleEndian.PutUint32(query, id)
	return control(f, ioctlProperty, query, maxAnswer)
}

// atOnce is how many reads of one call are under way at most.
const atOnce = 1

// together is for systems that read many pieces at once.
func (d *Disk) together([]Piece) (read [atOnce]bool) { return read }

// CurrentSize asks for the size in bytes as it is now.
func (d *Disk) CurrentSize() (int64, error) {
	if d.image {
		size, err := d.file.Seek(0, io.SeekEnd)
		if err != nil {
			return 0, fmt.Errorf("size of disk %s: %w", d.path, err)
		}
		return size, nil
	}
	b, err := control(d.file, ioctlLength, nil, 8)
	if err != nil || len(b) < 8 {
		return 0, fmt.Errorf("size of disk %s: %w", d.path, errors.Join(err, io.ErrUnexpectedEOF))
	}
	return int64(binary.LittleEndian.Uint64(b)), nil
}

// Device gives none: nothing follows the writes to a disk on Windows.
func (d *Disk) Device() (changes.Device, error) {
	return changes.Device{}, fmt.Errorf("disk %s: writes cannot be followed on Windows", d.path)
}

// Check gives an error when the disk has another size than when it was opened, or when
// its path names another disk by now, or none.
func (d *Disk) Check() error {
	size, err := d.CurrentSize()
	if err != nil {
		return err
	}
	there, err := Open(d.path)
	if err != nil {
		return fmt.Errorf("disk %s: %w: %w", d.path, ErrChanged, err)
	}
	defer func() { _ = there.Close() }()
	if size != d.size || there.size != d.size {
		return fmt.Errorf("disk %s: %w: it had %d bytes and has %d", d.path, ErrChanged, d.size, there.size)
	}
	if d.image {
		opened, err := d.file.Stat()
		if err != nil {
			return fmt.Errorf("disk %s: %w", d.path, err)
		}
		now, err := there.file.Stat()
		if err != nil || !os.SameFile(opened, now) {
			return fmt.Errorf("disk %s: %w: another one is there now", d.path, ErrChanged)
		}
		return nil
	}
	if d.identity() != there.identity() {
		return fmt.Errorf("disk %s: %w: another one is there now", d.path, ErrChanged)
	}
	return nil
}

// identity is what the device calls itself; nothing when it does not say.
func (d *Disk) identity() string {
	b, err := property(d.file, propertyDevice)
	if err != nil {
		return ""
	}
	about, _ := parseDescription(b)
	id, err := property(d.file, propertyIdentifier)
	if err != nil {
		return about.serial
	}
	return about.serial + "/" + parseNAA(id)
}

// NextData says that everything may hold data.
func (d *Disk) NextData(off int64) (start, end int64, err error) {
	return min(off, d.size), d.size, nil
}

// Discover lists the machine's physical drives.
func (System) Discover() ([]controlapi.InventoryDisk, error) {
	var out []controlapi.InventoryDisk
	var failed error
	for i := range maxDrives {
		path := fmt.Sprintf(`\\.\PhysicalDrive%d`, i)
		d, err := Open(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // numbers have gaps
		}
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		out = append(out, d.describe())
		_ = d.Close() // it was only asked
	}
	return out, failed
}

func (d *Disk) describe() controlapi.InventoryDisk {
	in := controlapi.InventoryDisk{Path: d.path, Size: d.size}
	var naa string
	if b, err := property(d.file, propertyIdentifier); err == nil {
		naa = parseNAA(b)
	}
	if b, err := property(d.file, propertyDevice); err == nil {
		about, _ := parseDescription(b)
		in.Serial, in.Model, in.Removable = about.serial, strings.TrimSpace(about.vendor+" "+about.product), about.removable
	}
	if naa != "" {
		in.WWN = "naa." + naa
	}
	in.BackingUUID = identity(in.Serial, naa)
	return in
}

// Volumes lists all volumes with the parts of the disks that they lie on. A disk may be a
// volume itself.
func Volumes(disks []string) ([]Volume, error) {
	numbers := map[uint32]string{}
	names := map[string]string{}
	for _, path := range disks {
		if !isDevice(path) {
			continue
		}
		names[strings.ToLower(strings.TrimSuffix(path, `\`))] = path
		if !strings.Contains(strings.ToLower(path), "physicaldrive") {
			continue
		}
		n, err := driveNumber(path)
		if err != nil {
			return nil, err
		}
		numbers[n] = path
	}
	var out []Volume
	err := eachVolume(func(name string) error {
		v, err := describeVolume(name, numbers)
		if path, is := names[strings.ToLower(strings.TrimSuffix(name, `\`))]; is && len(v.Extents) == 1 {
			v.Extents = []Extent{{Disk: path, Length: v.Extents[0].Length}}
		}
		out = append(out, v)
		return err
	})
	return out, err
}

func driveNumber(path string) (uint32, error) {
	d, err := Open(path)
	if err != nil {
		return 0, err
	}
	b, err := control(d.file, ioctlNumber, nil, 12) // STORAGE_DEVICE_NUMBER: type, number, partition
	if err = errors.Join(err, d.Close()); err != nil || len(b) < 12 {
		return 0, fmt.Errorf("number of disk %s: %w", path, errors.Join(err, io.ErrUnexpectedEOF))
	}
	return binary.LittleEndian.Uint32(b[4:]), nil
}

func eachVolume(do func(name string) error) error {
	var name [windows.MAX_PATH + 1]uint16
	h, err := windows.FindFirstVolume(&name[0], uint32(len(name)))
	if err != nil {
		return fmt.Errorf("list the volumes: %w", err)
	}
	for range maxVolumes {
		if err = do(windows.UTF16ToString(name[:])); err != nil {
			break
		}
		if err = windows.FindNextVolume(h, &name[0], uint32(len(name))); err != nil {
			break
		}
	}
	if errors.Is(err, windows.ERROR_NO_MORE_FILES) {
		err = nil
	} else if err == nil {
		err = fmt.Errorf("there are more than %d", maxVolumes)
	}
	if err = errors.Join(err, windows.FindVolumeClose(h)); err != nil {
		return fmt.Errorf("list the volumes: %w", err)
	}
	return nil
}

// describeVolume asks a volume. One that does not answer, as an empty card reader, lies
// nowhere.
func describeVolume(name string, numbers map[uint32]string) (Volume, error) {
	v := Volume{Name: name}
	root, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return v, err
	}
	var fs [windows.MAX_PATH + 1]uint16
	if windows.GetVolumeInformation(root, nil, 0, nil, nil, nil, &fs[0], uint32(len(fs))) == nil {
		v.FileSystem = windows.UTF16ToString(fs[:])
	}
	var paths [maxName]uint16
	var n uint32
	if err := windows.GetVolumePathNamesForVolumeName(root, &paths[0], uint32(len(paths)), &n); err == nil {
		v.Mounts = texts(paths[:min(int(n), len(paths))])
	} else if errors.Is(err, windows.ERROR_MORE_DATA) {
		v.Mounts = []string{"several folders"}
	}
	d, err := Open(strings.TrimSuffix(name, `\`))
	if err != nil {
		return v, nil //nolint:nilerr // said above
	}
	b, err := control(d.file, ioctlExtents, nil, extentsHeader+maxExtents*extentSize)
	if err = errors.Join(err, d.Close()); err != nil {
		return v, nil //nolint:nilerr // said above
	}
	extents, err := parseExtents(b)
	for _, e := range extents {
		v.Extents = append(v.Extents, Extent{numbers[e.number], e.offset, e.length})
	}
	return v, err
}

// texts splits a list of texts that each end with a zero.
func texts(list []uint16) (out []string) {
	for len(list) > 0 && list[0] != 0 {
		s := windows.UTF16ToString(list)
		out = append(out, s)
		list = list[min(len(windows.StringToUTF16(s)), len(list)):]
	}
	return out
}
