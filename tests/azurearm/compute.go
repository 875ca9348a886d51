package azurearm

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
)

const (
	typeDisk     = "microsoft.compute/disks"
	typeSnapshot = "microsoft.compute/snapshots"
	typeVM       = "microsoft.compute/virtualmachines"
	typeSet      = "microsoft.compute/availabilitysets"

	footer    = 512
	minUpload = 20<<20 + footer
)

// VMSize is a size of machine that the subscription is offered.
type VMSize struct {
	Name        string
	Family      string
	CPUs        int64
	MemoryGB    string
	DataDisks   int
	Generations string // e.g. "V1,V2"
	Zones       []string
	Restricted  bool // not for this subscription
	NoRoom      bool // every allocation fails, after it was accepted
}

var defaultSizes = []VMSize{
	{Name: "Standard_B2s", Family: "standardBSFamily", CPUs: 2, MemoryGB: "4", DataDisks: 4, Generations: "V1,V2", Zones: []string{"1", "2"}},
	{Name: "Standard_D2s_v5", Family: "standardDSv5Family", CPUs: 2, MemoryGB: "8", DataDisks: 4, Generations: "V1,V2", Zones: []string{"1", "2", "3"}},
	{Name: "Standard_D4s_v5", Family: "standardDSv5Family", CPUs: 4, MemoryGB: "16", DataDisks: 8, Generations: "V1,V2", Zones: []string{"1", "2", "3"}},
	{Name: "Standard_D8s_v5", Family: "standardDSv5Family", CPUs: 8, MemoryGB: "32", DataDisks: 16, Generations: "V2", Zones: []string{"1"}},
	{Name: "Standard_E4s_v5", Family: "standardESv5Family", CPUs: 4, MemoryGB: "32", DataDisks: 8, Generations: "V1,V2", Restricted: true},
}

// SetSizes changes what sizes there are.
func (s *Server) SetSizes(change func([]VMSize) []VMSize) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sizes = change(slices.Clone(s.sizes))
}

// SetQuota limits a usage: cores, or a family of sizes.
func (s *Server) SetQuota(name string, limit int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.quota[name] = limit
}

// Allow makes these the only actions that the caller's role has.
func (s *Server) Allow(actions ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.actions = actions
}

func (s *Server) size(name string) *VMSize {
	for i := range s.sizes {
		if strings.EqualFold(s.sizes[i].Name, name) {
			return &s.sizes[i]
		}
	}
	return nil
}

func (s *Server) find(id string) *Resource { return s.resources[strings.ToLower(id)] }

// source is a blob that a disk is imported from.
type source struct {
	size    int64
	copying bool
}

// source finds the blob; nil when there is none.
func (s *Server) source(address string) *source {
	if u, err := url.Parse(address); err == nil && s.emulator.has(u.Path) {
		return s.emulator.look(address)
	}
	if b := s.blobs[s.key(address)]; b != nil {
		return &source{int64(len(b.data)), b.copyLeft > 0}
	}
	return nil
}

// checkDisk refuses what no disk can be made from.
func (s *Server) checkDisk(r *Resource) *problem {
	switch option := text(r.Body, "properties", "creationData", "createOption"); option {
	case "Import":
		address := text(r.Body, "properties", "creationData", "sourceUri")
		from := s.source(address)
		switch {
		case strings.Contains(address, "snapshot="):
			return refuse(http.StatusBadRequest, "InvalidParameter", "sourceUri: a blob snapshot cannot be imported")
		case text(r.Body, "properties", "creationData", "storageAccountId") == "":
			return refuse(http.StatusBadRequest, "InvalidParameter", "Required parameter 'storageAccountId' is missing (null).")
		case from == nil:
			return refuse(http.StatusBadRequest, "BlobNotFound", "the blob %s was not found", address)
		case from.copying:
			return refuse(http.StatusConflict, "PendingCopyOperation", "the blob is still being copied")
		case (from.size-footer)%(1<<20) != 0:
			return refuse(http.StatusBadRequest, "InvalidParameter", "the blob is no fixed VHD: %d bytes", from.size)
		}
	case "Upload":
		size, _ := r.at("properties", "creationData", "uploadSizeBytes").(float64)
		if int64(size) < minUpload || (int64(size)-footer)%(1<<20) != 0 {
			return refuse(http.StatusBadRequest, "InvalidParameter", "uploadSizeBytes %d", int64(size))
		}
	case "FromImage", "Empty":
	default:
		return refuse(http.StatusBadRequest, "InvalidParameter", "createOption %q", option)
	}
	if old := s.find(r.ID); old != nil {
		if text(old.Body, "managedBy") != "" {
			return refuse(http.StatusConflict, "OperationNotAllowed", "disk %s is attached", r.ID)
		}
		return refuse(http.StatusConflict, "PropertyChangeNotAllowed", "Changing property 'disk.creationData' is not allowed.")
	}
	return nil
}

// madeDisk gives the disk its content.
func (s *Server) madeDisk(r *Resource) *problem {
	switch text(r.Body, "properties", "creationData", "createOption") {
	case "Import":
		size, p := s.imported(r, text(r.Body, "properties", "creationData", "sourceUri"))
		if p != nil {
			return p
		}
		r.set("Unattached", "properties", "diskState")
		r.set(float64(size), "properties", "diskSizeBytes")
	case "Upload":
		size, _ := r.at("properties", "creationData", "uploadSizeBytes").(float64)
		s.blobs[diskKey(r)] = &blob{data: make([]byte, int(size)), metadata: map[string]string{}}
		r.set("ReadyToUpload", "properties", "diskState")
		r.set(size-footer, "properties", "diskSizeBytes")
	default:
		r.set("Unattached", "properties", "diskState")
	}
	return nil
}

// imported gives the disk what the blob has.
func (s *Server) imported(r *Resource, address string) (size int64, p *problem) {
	if u, err := url.Parse(address); err == nil && s.emulator.has(u.Path) {
		if size, err = s.emulator.fetch(address, r); err != nil {
			return 0, refuse(http.StatusBadRequest, "InvalidVhd", "%s", err)
		}
		return size, nil
	}
	b := s.blobs[s.key(address)]
	if b == nil {
		return 0, refuse(http.StatusNotFound, "BlobNotFound", "the blob went away")
	}
	s.blobs[diskKey(r)] = &blob{data: slices.Clone(b.data), metadata: map[string]string{}}
	return int64(len(b.data) - footer), nil
}

func (*Server) diskGone(r *Resource) *problem {
	if by := text(r.Body, "managedBy"); by != "" {
		return refuse(http.StatusConflict, "OperationNotAllowed", "Disk %s is attached to VM %s.", path.Base(r.ID), by)
	}
	return nil
}

func (s *Server) removedDisk(r *Resource) {
	delete(s.blobs, diskKey(r))
	if s.emulator != nil {
		_ = os.Remove(s.emulator.file(r)) // it has one only if it was imported from there
	}
}

// diskKey is where a disk's content is kept.
func diskKey(r *Resource) string {
	return fmt.Sprintf("disks/%x/abcd", sha256.Sum256([]byte(strings.ToLower(r.ID))))
}

// DiskContent gives a disk's bytes, without its footer.
func (s *Server) DiskContent(id string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.find(id)
	if r == nil || s.blobs[diskKey(r)] == nil {
		return nil
	}
	data := s.blobs[diskKey(r)].data
	return slices.Clone(data[:len(data)-footer])
}

// disksOf gives the ids of a machine's disks; the first is the one it boots from.
func disksOf(r *Resource) []string {
	out := []string{text(r.Body, "properties", "storageProfile", "osDisk", "managedDisk", "id")}
	for _, d := range list(r.Body, "properties", "storageProfile", "dataDisks") {
		out = append(out, text(d, "managedDisk", "id"))
	}
	return out
}

// checkVM refuses what cannot become a machine.
func (s *Server) checkVM(r *Resource) *problem {
	size := s.size(text(r.Body, "properties", "hardwareProfile", "vmSize"))
	switch {
	case size == nil:
		return refuse(http.StatusBadRequest, "InvalidParameter", "The value of parameter vmSize is invalid.")
	case size.Restricted:
		return refuse(http.StatusConflict, "SkuNotAvailable", "The requested VM size %s is currently not available in location %s.", size.Name, Location)
	}
	for _, name := range []string{"cores", size.Family} {
		limit, limited := s.quota[name]
		if used := s.used(name, r.ID); limited && used+size.CPUs > limit {
			return refuse(http.StatusConflict, "OperationNotAllowed",
				"Operation could not be completed as it results in exceeding approved %s Cores quota. Current Limit: %d, Current Usage: %d, Additional Required: %d.", name, limit, used, size.CPUs)
		}
	}
	nics := list(r.Body, "properties", "networkProfile", "networkInterfaces")
	if len(nics) == 0 {
		return refuse(http.StatusBadRequest, "InvalidParameter", "Virtual machine must have at least one network interface.")
	}
	for _, n := range nics {
		nic := s.find(text(n, "id"))
		if nic == nil || text(nic.Body, "properties", "provisioningState") != "Succeeded" {
			return refuse(http.StatusBadRequest, "InvalidResourceReference", "Resource %s referenced by resource %s was not found.", text(n, "id"), r.ID)
		}
		if by := text(nic.Body, "properties", "virtualMachine", "id"); by != "" && !strings.EqualFold(by, r.ID) {
			return refuse(http.StatusBadRequest, "NicInUse", "Network Interface %s is used by existing resource %s.", nic.ID, by)
		}
	}
	if r.at("properties", "storageProfile", "imageReference") != nil {
		return s.imageVM(r)
	}
	return s.checkVMDisks(r, size)
}

// imageVM makes the disk of a machine that comes from an image, and takes its custom data
// away, which nobody is ever shown.
func (s *Server) imageVM(r *Resource) *problem {
	if text(r.Body, "properties", "osProfile", "adminUsername") == "" {
		return refuse(http.StatusBadRequest, "InvalidParameter", "Required parameter 'osProfile' is missing (null).")
	}
	if s.find(r.ID) != nil {
		return refuse(http.StatusConflict, "PropertyChangeNotAllowed", "Changing property 'osProfile' is not allowed.")
	}
	boot, err := base64.StdEncoding.DecodeString(text(r.Body, "properties", "osProfile", "customData"))
	if err != nil {
		return refuse(http.StatusBadRequest, "InvalidParameter", "Custom data in OSProfile must be in Base64 encoding.")
	}
	s.booted[strings.ToLower(r.ID)] = append(s.booted[strings.ToLower(r.ID)], string(boot))
	profile, _ := r.at("properties", "osProfile").(map[string]any)
	delete(profile, "customData")
	name := text(r.Body, "properties", "storageProfile", "osDisk", "name")
	disk := &Resource{ID: path.Dir(path.Dir(r.ID)) + "/disks/" + name, Type: typeDisk, Body: map[string]any{"location": Location}}
	s.complete(disk)
	disk.set("Succeeded", "properties", "provisioningState")
	disk.Body["managedBy"] = r.ID
	s.resources[strings.ToLower(disk.ID)] = disk
	r.set(map[string]any{"id": disk.ID}, "properties", "storageProfile", "osDisk", "managedDisk")
	s.useCards(r)
	return nil
}

// useCards notes whose the machine's network cards are.
func (s *Server) useCards(r *Resource) {
	for _, n := range list(r.Body, "properties", "networkProfile", "networkInterfaces") {
		s.find(text(n, "id")).set(map[string]any{"id": r.ID}, "properties", "virtualMachine")
	}
}

// CustomData gives what the machines of this id were given for their first boot, one for
// each time that it was made.
func (s *Server) CustomData(id string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.booted[strings.ToLower(id)])
}

func (s *Server) checkVMDisks(r *Resource, size *VMSize) *problem {
	ids := disksOf(r)
	if len(ids)-1 > size.DataDisks {
		return refuse(http.StatusConflict, "OperationNotAllowed", "The maximum number of data disks allowed to be attached to a VM of this size is %d.", size.DataDisks)
	}
	zone := text(r.Body, "zones", 0)
	set := text(r.Body, "properties", "availabilitySet", "id")
	if set != "" && (s.find(set) == nil || zone != "") {
		return refuse(http.StatusBadRequest, "InvalidResourceReference", "availability set %s does not exist, or stands beside a zone", set)
	}
	if zone != "" && !slices.Contains(size.Zones, zone) {
		return refuse(http.StatusConflict, "SkuNotAvailable", "%s is not available in zone %s", size.Name, zone)
	}
	for i, id := range ids {
		disk := s.find(id)
		if disk == nil || text(disk.Body, "properties", "provisioningState") != "Succeeded" {
			return refuse(http.StatusBadRequest, "InvalidResourceReference", "Disk %s was not found.", id)
		}
		by, state := text(disk.Body, "managedBy"), text(disk.Body, "properties", "diskState")
		switch {
		case by != "" && !strings.EqualFold(by, r.ID):
			return refuse(http.StatusConflict, "AttachDiskWhileBeingDetached", "Disk %s is attached to %s.", id, by)
		case by == "" && state != "Unattached":
			return refuse(http.StatusConflict, "OperationNotAllowed", "Disk %s is in state %s.", id, state)
		case text(disk.Body, "zones", 0) != zone:
			return refuse(http.StatusBadRequest, "BadRequest", "Disk %s is not in the zone of the machine.", id)
		case i == 0 && !strings.Contains(size.Generations, text(disk.Body, "properties", "hyperVGeneration")):
			return refuse(http.StatusBadRequest, "BadRequest", "The selected VM size '%s' cannot boot Hypervisor Generation '%s'.", size.Name, text(disk.Body, "properties", "hyperVGeneration"))
		}
	}
	for _, id := range ids {
		disk := s.find(id)
		disk.Body["managedBy"] = r.ID
		disk.set("Reserved", "properties", "diskState")
	}
	s.useCards(r)
	return nil
}

// used is what machines use of a quota, but for the one that is asked about.
func (s *Server) used(name, without string) int64 {
	sum := int64(0)
	for _, r := range s.resources {
		if r.Type != typeVM || strings.EqualFold(r.ID, without) {
			continue
		}
		if size := s.size(text(r.Body, "properties", "hardwareProfile", "vmSize")); size != nil && (name == "cores" || size.Family == name) {
			sum += size.CPUs
		}
	}
	return sum
}

// madeVM starts the machine: making one does.
func (s *Server) madeVM(r *Resource) *problem {
	if size := s.size(text(r.Body, "properties", "hardwareProfile", "vmSize")); size != nil && size.NoRoom {
		return refuse(http.StatusConflict, "AllocationFailed", "Allocation failed. We do not have sufficient capacity for the requested VM size in this region.")
	}
	sum := sha256.Sum256([]byte(r.ID))
	r.set(fmt.Sprintf("%x-%x-%x-%x-%x", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16]), "properties", "vmId")
	s.power(r, "running")
	return nil
}

func (s *Server) power(r *Resource, state string) {
	r.set(state, "properties", "powerOfTheTest")
	for _, id := range disksOf(r) {
		if disk := s.find(id); disk != nil {
			disk.set(map[bool]string{true: "Attached", false: "Reserved"}[state == "running"], "properties", "diskState")
		}
	}
}

func (s *Server) removedVM(r *Resource) {
	for i, id := range disksOf(r) {
		if disk := s.find(id); disk != nil && strings.EqualFold(text(disk.Body, "managedBy"), r.ID) {
			delete(disk.Body, "managedBy")
			disk.set("Unattached", "properties", "diskState")
			if i == 0 && text(r.Body, "properties", "storageProfile", "osDisk", "deleteOption") == "Delete" {
				s.removedDisk(disk)
				delete(s.resources, strings.ToLower(id))
			}
		}
	}
	for _, other := range s.resources {
		if other.Type == typeNIC && strings.EqualFold(text(other.Body, "properties", "virtualMachine", "id"), r.ID) {
			delete(other.Body["properties"].(map[string]any), "virtualMachine") //nolint:forcetypeassert // complete made it
		}
	}
}

// vmAction is a POST below a machine.
func (s *Server) vmAction(w http.ResponseWriter, r *http.Request, body []byte, f *Fault, vm *Resource, action string) {
	accepted := http.StatusAccepted
	power := func(state string) {
		s.begin(w, r, f, vm.ID, func() *problem { s.power(vm, state); return nil })
		w.WriteHeader(accepted)
	}
	switch action {
	case "start":
		power("running")
	case "poweroff":
		power("stopped")
	case "deallocate":
		power("deallocated")
	case "runcommand":
		var in struct {
			Script []string `json:"script"`
		}
		_ = json.Unmarshal(body, &in)
		op := s.begin(w, r, f, vm.ID, func() *problem { return nil })
		op.output = map[string]any{"value": []any{map[string]any{
			"code": "ProvisioningState/succeeded", "message": "Enable succeeded: \n[stdout]\n" + text(vm.Body, "properties", "answerOfTheTest") + "\n[stderr]\n",
		}}}
		w.WriteHeader(accepted)
	case "retrievebootdiagnosticsdata":
		write(w, nil, map[string]any{"serialConsoleLogBlobUri": s.URL + "/blob/md/serial?sig=secret"}, nil)
	default:
		write(w, nil, nil, refuse(http.StatusNotFound, "NotFound", "no action %s", action))
	}
}

func (s *Server) instanceView(w http.ResponseWriter, vm *Resource) {
	s.progress(vm.ID)
	view := map[string]any{"statuses": []any{
		map[string]any{"code": "ProvisioningState/" + strings.ToLower(text(vm.Body, "properties", "provisioningState"))},
		map[string]any{"code": "PowerState/" + text(vm.Body, "properties", "powerOfTheTest")},
	}}
	if agent := text(vm.Body, "properties", "agentOfTheTest"); agent != "" {
		view["vmAgent"] = map[string]any{"statuses": []any{map[string]any{"code": "ProvisioningState/succeeded", "displayStatus": agent}}}
	}
	write(w, nil, view, nil)
}

// diskAction gives and takes access to a disk's content.
func (s *Server) diskAction(w http.ResponseWriter, r *http.Request, f *Fault, disk *Resource, action string) {
	status := http.StatusAccepted
	switch action {
	case "begingetaccess":
		if state := text(disk.Body, "properties", "diskState"); state != "ReadyToUpload" && state != "ActiveUpload" {
			write(w, nil, nil, refuse(http.StatusConflict, "OperationNotAllowed", "the disk is in state %s", state))
			return
		}
		op := s.begin(w, r, f, disk.ID, func() *problem { disk.set("ActiveUpload", "properties", "diskState"); return nil })
		op.output = map[string]any{"accessSAS": s.URL + "/" + diskKey(disk) + "?sig=secret-of-the-disk"}
	case "endgetaccess":
		s.begin(w, r, f, disk.ID, func() *problem {
			b := s.blobs[diskKey(disk)]
			if disk.at("properties", "diskState") == "ActiveUpload" {
				if string(b.data[len(b.data)-footer:len(b.data)-footer+8]) != "conectix" {
					return refuse(http.StatusConflict, "InvalidVhd", "the uploaded disk has no footer")
				}
				disk.set("Unattached", "properties", "diskState")
			}
			return nil
		})
	}
	write(w, &status, nil, nil)
}
