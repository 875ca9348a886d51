package azurite

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Fault is what happens to one request. The zero value lets it pass.
type Fault struct {
	// Status is answered instead of asking the emulator, with Code and RetryAfter (seconds).
	Status     int
	Code       string
	RetryAfter string
	Delay      time.Duration // before anything else
	// LoseReply has the request done and its answer lost: the connection breaks.
	LoseReply bool
	// Late breaks the connection at once, and has the request done when it is closed.
	Late <-chan struct{}
}

// Proxy stands before an emulator and does to requests what a test asks for.
type Proxy struct {
	server  *http.Server
	address string
	to      *url.URL
	forward *httputil.ReverseProxy
	fault   atomic.Pointer[func(*http.Request) Fault]
	keeping sync.Mutex // held while late grows: who waits for it comes before or after
	late    sync.WaitGroup

	// Requests counts those that came in.
	Requests atomic.Int64
	// Bytes counts their bodies' bytes.
	Bytes atomic.Int64
}

// NewProxy starts a proxy; it ends with the test.
func NewProxy(t testing.TB, s *Server) *Proxy {
	t.Helper()
	to, err := url.Parse("http://" + s.address)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}
	p := &Proxy{to: to, address: l.Addr().String()}
	p.forward = &httputil.ReverseProxy{
		Transport: transport,
		Rewrite:   func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = to.Scheme, to.Host },
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) {
			panic(http.ErrAbortHandler) // the emulator is gone: break the connection
		},
	}
	p.Set(nil)
	p.server = &http.Server{Handler: p, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = p.server.Serve(l) // until Close
	}()
	t.Cleanup(func() {
		_ = p.server.Close()
		<-done
		p.Late()
		transport.CloseIdleConnections()
	})
	return p
}

// Endpoint is the account's URL by way of the proxy.
func (p *Proxy) Endpoint() string { return "http://" + p.address + "/" + AccountName }

// Set says what happens to requests from now on; nil lets them pass.
func (p *Proxy) Set(fault func(*http.Request) Fault) {
	if fault == nil {
		fault = func(*http.Request) Fault { return Fault{} }
	}
	p.fault.Store(&fault)
}

// ServeHTTP handles one request.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.Requests.Add(1)
	p.Bytes.Add(max(0, r.ContentLength))
	f := (*p.fault.Load())(r)
	if f.Delay > 0 {
		time.Sleep(f.Delay)
	}
	switch {
	case f.Status != 0:
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("x-ms-error-code", f.Code)
		if f.RetryAfter != "" {
			w.Header().Set("Retry-After", f.RetryAfter)
		}
		w.WriteHeader(f.Status)
	case f.LoseReply:
		p.do(r)
		panic(http.ErrAbortHandler)
	case f.Late != nil:
		p.doLate(r, f.Late)
		panic(http.ErrAbortHandler)
	default:
		p.forward.ServeHTTP(w, r)
	}
}

// do has the request done and throws the answer away.
func (p *Proxy) do(r *http.Request) {
	p.forward.ServeHTTP(discard{http.Header{}}, r)
}

// doLate keeps the request, with its body, until the channel is closed.
func (p *Proxy) doLate(r *http.Request, late <-chan struct{}) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	kept := r.Clone(context.WithoutCancel(r.Context()))
	kept.Body = io.NopCloser(bytes.NewReader(body))
	p.keeping.Lock()
	defer p.keeping.Unlock()
	p.late.Go(func() {
		<-late
		p.do(kept)
	})
}

// Late waits until all requests that were kept are done.
func (p *Proxy) Late() {
	p.keeping.Lock()
	defer p.keeping.Unlock()
	p.late.Wait()
}

type discard struct{ h http.Header }

func (d discard) Header() http.Header         { return d.h }
func (d discard) Write(b []byte) (int, error) { return len(b), nil }
func (d discard) WriteHeader(int)             {}
