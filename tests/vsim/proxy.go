package vsim

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path"
	"regexp"
	"sync"
	"time"
)

// Trouble is what happens to a call on the way.
type Trouble int

// The troubles.
const (
	Unavailable Trouble = iota // 503, and vCenter does not see the call
	LostReply                  // vCenter does it, and the line breaks before the answer
	Slow                       // it takes a second longer
)

// Proxy stands before a simulated vCenter and makes trouble.
type Proxy struct {
	URL        string
	Thumbprint string
	CA         []byte // PEM of its certificate

	server *httptest.Server
	mu     sync.Mutex
	next   map[string][]Trouble
	calls  map[string]int
	down   bool
}

var soapMethod = regexp.MustCompile(`<(?:\w+:)?Body[^>]*>\s*<(?:\w+:)?(\w+)`)

// NewProxy starts one. Close ends it.
func NewProxy(target string) (*Proxy, error) {
	to, err := url.Parse(target)
	if err != nil {
		return nil, err
	}
	p := &Proxy{next: map[string][]Trouble{}, calls: map[string]int{}}
	forward := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: to.Scheme, Host: to.Host})
	// The simulator's own certificate, in the same process.
	forward.Transport = &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // a test's
	p.server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.serve(w, r, forward) }))
	p.URL = p.server.URL + to.Path
	p.Thumbprint = fmt.Sprintf("%X", sha256.Sum256(p.server.Certificate().Raw))
	p.CA = encodePEM(p.server.Certificate().Raw)
	return p, nil
}

// Close ends it, and every connection.
func (p *Proxy) Close() {
	p.server.CloseClientConnections()
	p.server.Close()
}

// Trouble lets the next calls of a method ("Login"; over REST "POST session") have troubles, one each.
func (p *Proxy) Trouble(method string, t ...Trouble) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next[method] = append(p.next[method], t...)
}

// Down lets vCenter be away, or be there again.
func (p *Proxy) Down(down bool) {
	p.mu.Lock()
	p.down = down
	p.mu.Unlock()
	if down {
		p.server.CloseClientConnections()
	}
}

// Calls says how often a method was called.
func (p *Proxy) Calls(method string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calls[method]
}

func (p *Proxy) take(method string) (t Trouble, some, down bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls[method]++
	if q := p.next[method]; len(q) > 0 {
		p.next[method] = q[1:]
		return q[0], true, p.down
	}
	return 0, false, p.down
}

func (p *Proxy) serve(w http.ResponseWriter, r *http.Request, forward http.Handler) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 64<<20))
	if err != nil {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	method := r.Method + " " + path.Base(r.URL.Path) // of REST
	if m := soapMethod.FindSubmatch(body); m != nil {
		method = string(m[1])
	}
	t, some, down := p.take(method)
	switch {
	case down:
		panic(http.ErrAbortHandler)
	case some && t == Unavailable:
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	case some && t == LostReply:
		forward.ServeHTTP(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler)
	case some && t == Slow:
		time.Sleep(time.Second)
	}
	forward.ServeHTTP(w, r)
}
