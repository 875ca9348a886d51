package azurearm

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/xml"
	"fmt"
	"hash/crc64"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

const (
	page      = 512
	maxPut    = 4 << 20
	signature = "sig=secret-of-the-disk"
)

// blob is a page blob, a snapshot of one, or a disk's content.
type blob struct {
	data     []byte
	metadata map[string]string
	copyLeft int    // looks until a copy has ended
	copyFrom []byte // what is there then
	copyOf   string
}

// AddSnapshot makes a page blob with a snapshot of it, which has the content and
// the footer, and gives the snapshot's address.
func (s *Server) AddSnapshot(account, container, name string, data []byte) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := strings.Join([]string{"blob", account, container, name}, "/")
	s.blobs[key] = &blob{data: make([]byte, len(data)), metadata: map[string]string{}}
	s.serial++
	id := fmt.Sprintf("2026-01-01T00:00:00.%07dZ", s.serial)
	s.blobs[key+"?"+id] = &blob{data: slices.Clone(data), metadata: map[string]string{}}
	return s.URL + "/" + key + "?snapshot=" + url.QueryEscape(id)
}

// Blobs gives the names of the blobs of a container.
func (s *Server) Blobs(account, container string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.names(account, container, "")
}

func (s *Server) names(account, container, prefix string) []string {
	at := strings.Join([]string{"blob", account, container}, "/") + "/"
	var out []string
	for _, key := range slices.Sorted(maps.Keys(s.blobs)) {
		if name, ok := strings.CutPrefix(key, at); ok && !strings.Contains(name, "?") && strings.HasPrefix(name, prefix) {
			out = append(out, name)
		}
	}
	return out
}

// key is under what a blob's address is kept.
func (s *Server) key(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	key := strings.Trim(u.Path, "/")
	if snapshot := u.Query().Get("snapshot"); snapshot != "" {
		key += "?" + snapshot
	}
	return key
}

// blob is the blob service, as far as pages go.
func (s *Server) blob(w http.ResponseWriter, r *http.Request, body []byte) {
	q := r.URL.Query()
	disk := strings.HasPrefix(r.URL.Path, "/disks/")
	if disk != strings.Contains(r.URL.RawQuery, signature) || !disk && r.Header.Get("Authorization") != "Bearer "+token {
		blobError(w, http.StatusForbidden, "AuthenticationFailed")
		return
	}
	if r.Method == http.MethodPost && q.Get("restype") == "service" && q.Get("comp") == "userdelegationkey" && !disk {
		s.delegationKey(w, r, body)
		return
	}
	if q.Get("comp") == "list" {
		parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
		s.listBlobs(w, parts[1], parts[2], q.Get("prefix"))
		return
	}
	key := s.key(r.URL.String())
	b := s.blobs[key]
	switch {
	case r.Method == http.MethodPut && q.Get("comp") == "" && !disk:
		s.putBlob(w, r, key)
	case b == nil:
		blobError(w, http.StatusNotFound, "BlobNotFound")
	case r.Method == http.MethodPut && q.Get("comp") == "page" && q.Get("snapshot") == "":
		s.putPage(w, r, b, body)
	case r.Method == http.MethodGet && q.Get("comp") == "pagelist":
		b.listPages(w)
	case r.Method == http.MethodHead:
		b.head(w)
	case r.Method == http.MethodDelete && !disk:
		delete(s.blobs, key)
		w.WriteHeader(http.StatusAccepted)
	default:
		blobError(w, http.StatusBadRequest, "InvalidInput")
	}
}

func blobError(w http.ResponseWriter, status int, code string) {
	w.Header().Set("x-ms-error-code", code)
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, "<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>%s</Code><Message>%s</Message></Error>", code, code)
}

func metadataOf(r *http.Request) map[string]string {
	out := map[string]string{}
	for name, values := range r.Header {
		if key, ok := strings.CutPrefix(strings.ToLower(name), "x-ms-meta-"); ok {
			out[key] = values[0]
		}
	}
	return out
}

// putBlob makes an empty page blob, or begins a copy.
func (s *Server) putBlob(w http.ResponseWriter, r *http.Request, key string) {
	if source := r.Header.Get("x-ms-copy-source"); source != "" {
		from := s.blobs[s.key(source)]
		if from == nil {
			blobError(w, http.StatusNotFound, "CannotVerifyCopySource")
			return
		}
		if have := s.blobs[key]; have != nil && have.copyLeft > 0 {
			blobError(w, http.StatusConflict, "PendingCopyOperation")
			return
		}
		s.blobs[key] = &blob{data: []byte{}, metadata: metadataOf(r), copyLeft: pollsOfAnOperation, copyFrom: slices.Clone(from.data), copyOf: source}
		w.Header().Set("x-ms-copy-id", "copy")
		w.Header().Set("x-ms-copy-status", "pending")
		w.WriteHeader(http.StatusAccepted)
		return
	}
	size, err := strconv.Atoi(r.Header.Get("x-ms-blob-content-length"))
	if err != nil || r.Header.Get("x-ms-blob-type") != "PageBlob" {
		blobError(w, http.StatusBadRequest, "InvalidHeaderValue")
		return
	}
	s.blobs[key] = &blob{data: make([]byte, size), metadata: metadataOf(r)}
	w.WriteHeader(http.StatusCreated)
}

func (b *blob) head(w http.ResponseWriter) {
	if b.copyFrom != nil {
		if b.copyLeft--; b.copyLeft <= 0 {
			b.data, b.copyFrom = b.copyFrom, nil
		}
	}
	if b.copyOf != "" {
		w.Header().Set("x-ms-copy-id", "copy")
		w.Header().Set("x-ms-copy-source", b.copyOf)
		w.Header().Set("x-ms-copy-status", map[bool]string{true: "pending", false: "success"}[b.copyFrom != nil])
	}
	for key, value := range b.metadata {
		w.Header().Set("x-ms-meta-"+key, value)
	}
	w.Header().Set("x-ms-blob-type", "PageBlob")
	w.Header().Set("Last-Modified", now())
	w.Header().Set("ETag", `"1"`)
	w.Header().Set("Content-Length", strconv.Itoa(len(b.data)))
	w.WriteHeader(http.StatusOK)
}

// span reads "bytes=a-b" and checks it as Azure does.
func span(header string, size int) (from, to int, ok bool) {
	if n, err := fmt.Sscanf(header, "bytes=%d-%d", &from, &to); n != 2 || err != nil {
		return 0, 0, false
	}
	to++
	return from, to, from%page == 0 && to%page == 0 && from < to && to <= size && to-from <= maxPut
}

func (s *Server) putPage(w http.ResponseWriter, r *http.Request, b *blob, body []byte) {
	from, to, ok := span(first(r.Header.Get("x-ms-range"), r.Header.Get("Range")), len(b.data))
	if !ok {
		blobError(w, http.StatusRequestedRangeNotSatisfiable, "InvalidPageRange")
		return
	}
	if source := r.Header.Get("x-ms-copy-source"); source != "" {
		other := s.blobs[s.key(source)]
		if other == nil || !readable(source) {
			blobError(w, http.StatusForbidden, "CannotVerifyCopySource")
			return
		}
		a, z, ok := span(r.Header.Get("x-ms-source-range"), len(other.data))
		if !ok || z-a != to-from {
			blobError(w, http.StatusBadRequest, "InvalidSourceRange")
			return
		}
		body = other.data[a:z]
	}
	if len(body) != to-from {
		blobError(w, http.StatusBadRequest, "InvalidInput")
		return
	}
	if sum := r.Header.Get("x-ms-content-crc64"); r.Header.Get("x-ms-copy-source") == "" && sum != crcOf(body) {
		blobError(w, http.StatusBadRequest, "Crc64Mismatch")
		return
	}
	copy(b.data[from:to], body)
	w.Header().Set("ETag", `"1"`)
	w.Header().Set("Last-Modified", now())
	w.WriteHeader(http.StatusCreated)
}

// crcTable is Azure Storage's polynomial, in the order of bits that hash/crc64 wants.
var crcTable = crc64.MakeTable(0x9A6C9329AC4BC9B5)

// crcOf is what a write without a source must come with: Drover sends none without.
func crcOf(body []byte) string {
	return base64.StdEncoding.EncodeToString(binary.LittleEndian.AppendUint64(nil, crc64.Checksum(body, crcTable)))
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// listPages lists the runs of pages that are not all zero.
func (b *blob) listPages(w http.ResponseWriter) {
	type run struct {
		Start int `xml:"Start"`
		End   int `xml:"End"`
	}
	var runs []run
	for at := 0; at < len(b.data); at += page {
		if slices.IndexFunc(b.data[at:at+page], func(c byte) bool { return c != 0 }) < 0 {
			continue
		}
		if n := len(runs); n > 0 && runs[n-1].End == at-1 {
			runs[n-1].End += page
		} else {
			runs = append(runs, run{at, at + page - 1})
		}
	}
	w.Header().Set("Content-Type", "application/xml")
	w.Header().Set("x-ms-blob-content-length", strconv.Itoa(len(b.data)))
	out, _ := xml.Marshal(struct {
		XMLName xml.Name `xml:"PageList"`
		Runs    []run    `xml:"PageRange"`
	}{Runs: runs})
	_, _ = w.Write(out)
}

func (s *Server) listBlobs(w http.ResponseWriter, account, container, prefix string) {
	w.Header().Set("Content-Type", "application/xml")
	_, _ = fmt.Fprintf(w, `<?xml version="1.0" encoding="utf-8"?><EnumerationResults ServiceEndpoint="%s/blob/%s" ContainerName="%s"><Blobs>`, s.URL, account, container)
	for _, name := range s.names(account, container, prefix) {
		_, _ = fmt.Fprintf(w, `<Blob><Name>%s</Name><Properties><BlobType>PageBlob</BlobType></Properties></Blob>`, name)
	}
	_, _ = fmt.Fprint(w, `</Blobs><NextMarker/></EnumerationResults>`)
}
