package azurearm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
)

const (
	emulatorHours = 24
	copyPiece     = 1 << 20
)

// emulator is a storage account that another program emulates. Here it is reached with a
// token, as in Azure; there, with a signature of ours.
type emulator struct {
	server *Server
	at     *url.URL // of the account
	sas    string
	dir    string // of the disks that are imported from it
	proxy  *httputil.ReverseProxy
}

// UseEmulator puts an emulated storage account behind the server, which then takes tokens
// for it. Disks that are imported from there are files in the directory.
func (s *Server) UseEmulator(endpoint, account, key, dir string) error {
	at, err := url.Parse(endpoint)
	if err != nil {
		return err
	}
	cred, err := azblob.NewSharedKeyCredential(account, key)
	if err != nil {
		return err
	}
	signed, err := sas.AccountSignatureValues{
		Protocol: sas.ProtocolHTTPSandHTTP, ExpiryTime: time.Now().UTC().Add(emulatorHours * time.Hour),
		Permissions:   (&sas.AccountPermissions{Read: true, Write: true, Delete: true, List: true, Add: true, Create: true}).String(),
		ResourceTypes: (&sas.AccountResourceTypes{Service: true, Container: true, Object: true}).String(),
	}.SignWithSharedKey(cred)
	if err != nil {
		return err
	}
	e := &emulator{server: s, at: at, sas: signed.Encode(), dir: dir}
	e.proxy = &httputil.ReverseProxy{Rewrite: e.rewrite}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.emulator = e
	return os.MkdirAll(dir, 0o700)
}

// StorageEndpoint is the emulated account's blob service, as Azure itself knows it.
func (s *Server) StorageEndpoint() string { return s.URL + s.emulator.at.Path }

// has says whether an address is one of the account's.
func (e *emulator) has(path string) bool { return e != nil && strings.HasPrefix(path, e.at.Path+"/") }

func (e *emulator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer "+token {
		blobError(w, http.StatusForbidden, "AuthenticationFailed")
		return
	}
	e.proxy.ServeHTTP(w, r)
}

func (e *emulator) rewrite(r *httputil.ProxyRequest) {
	r.Out.URL, r.Out.Host = e.sign(r.Out.URL), e.at.Host
	r.Out.Header.Del("Authorization")
	if source, err := url.Parse(r.In.Header.Get("x-ms-copy-source")); err == nil && e.has(source.Path) {
		r.Out.Header.Set("x-ms-copy-source", e.sign(source).String())
	}
}

// sign gives an address of ours as the emulator takes it.
func (e *emulator) sign(u *url.URL) *url.URL {
	out := *u
	out.Scheme, out.Host = e.at.Scheme, e.at.Host
	out.RawQuery = strings.TrimPrefix(out.RawQuery+"&"+e.sas, "&")
	return &out
}

// ask asks the emulator about a blob by its address here.
func (e *emulator) ask(method, address string) (*http.Response, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequest(method, e.sign(u).String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, errors.Join(fmt.Errorf("%s %s: status %d", method, u.Path, resp.StatusCode), resp.Body.Close())
	}
	return resp, nil
}

// look finds a blob that may be imported; nil when there is none.
func (e *emulator) look(address string) *source {
	resp, err := e.ask(http.MethodHead, address)
	if err != nil {
		return nil
	}
	_ = resp.Body.Close()
	return &source{size: resp.ContentLength, copying: resp.Header.Get("x-ms-copy-status") == "pending"}
}

// file is where the disk's content is kept.
func (e *emulator) file(r *Resource) string {
	return filepath.Join(e.dir, strings.ReplaceAll(diskKey(r), "/", "-"))
}

// fetch makes the disk's file from a blob, without its footer.
func (e *emulator) fetch(address string, r *Resource) (size int64, err error) {
	resp, err := e.ask(http.MethodGet, address)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	size = resp.ContentLength - footer
	f, err := os.OpenFile(e.file(r), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(size); err != nil {
		return 0, err
	}
	zeros, piece := make([]byte, copyPiece), make([]byte, copyPiece)
	for at := int64(0); at < size; {
		n, err := io.ReadFull(resp.Body, piece[:min(copyPiece, size-at)])
		if err != nil {
			return 0, err
		}
		if !bytes.Equal(piece[:n], zeros[:n]) {
			if _, err := f.WriteAt(piece[:n], at); err != nil {
				return 0, err
			}
		}
		at += int64(n)
	}
	end := make([]byte, footer)
	if _, err := io.ReadFull(resp.Body, end); err != nil || !bytes.HasPrefix(end, []byte("conectix")) {
		return 0, errors.Join(errors.New("the blob has no footer of a VHD"), err)
	}
	return size, nil
}

// DiskFile gives the file of a disk that was imported from the emulated account: what a
// machine that has the disk reads and writes.
func (s *Server) DiskFile(id string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.find(id); r != nil && s.emulator != nil {
		return s.emulator.file(r)
	}
	return ""
}

// Machine is a virtual machine that is there.
type Machine struct {
	Name     string
	Instance string // its hardware uuid, as its guest sees it
	Running  bool
	Tags     map[string]string
	Disks    []string // ids; the first is the one it boots from
}

// Machines gives all virtual machines, in order of their names.
func (s *Server) Machines() []Machine {
	var out []Machine
	for _, id := range s.List(typeVM) {
		s.mu.Lock()
		if r := s.find(id); r != nil {
			m := Machine{
				Name: text(r.Body, "name"), Running: text(r.Body, "properties", "powerOfTheTest") == "running",
				Tags: map[string]string{}, Disks: disksOf(r),
			}
			m.Instance = s.instance(r, m.Disks[0])
			tags, _ := r.Body["tags"].(map[string]any)
			for k, v := range tags {
				m.Tags[k], _ = v.(string)
			}
			out = append(out, m)
		}
		s.mu.Unlock()
	}
	return out
}

// instance is the machine's id in the order of bytes of its generation's SMBIOS.
func (s *Server) instance(vm *Resource, boot string) string {
	id := text(vm.Body, "properties", "vmId")
	disk := s.find(boot)
	if len(id) < 18 || disk == nil || text(disk.Body, "properties", "hyperVGeneration") == "V2" {
		return id
	}
	return id[6:8] + id[4:6] + id[2:4] + id[0:2] + "-" + id[11:13] + id[9:11] + "-" + id[16:18] + id[14:16] + id[18:]
}
