// Package guest is the application that runs inside a simulated VM: it keeps
// changing files on the VM's ext4 disks and, when the agent's hooks freeze it,
// notes what every disk looks like at that moment. Its notes (the ledger) are the
// independent witness that recovery points are judged by: it shares no code with
// the data path.
package guest

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Bounds of the application's load.
const (
	keepFiles   = 24        // files kept on each disk; older ones are removed
	maxFile     = 192 << 10 // bytes of one file
	requestTime = 30 * time.Second
)

// Disk is one disk of the VM.
type Disk struct {
	Name string // the key in the ledger
	Path string
}

// Entry is a line of the ledger: what the disks were when the guest was frozen
// for a cut.
type Entry struct {
	Machine string            `json:"machine"`
	Epoch   uint64            `json:"epoch"`
	Seq     uint64            `json:"seq"`
	Final   bool              `json:"final"`
	Time    time.Time         `json:"time"`
	Writes  int64             `json:"writes"` // files written so far
	Disks   map[string]string `json:"disks"`  // name -> SHA-256 of the whole disk, hex
}

// Options of a guest.
type Options struct {
	Disks  []Disk
	Socket string        // where freeze and thaw are asked for
	Ledger string        // file the entries are appended to
	Pause  time.Duration // between two writes
	// Limit ends a freeze that nobody thaws, except a final one.
	Limit time.Duration
}

// Guest is a running application.
type Guest struct {
	opts   Options
	mu     sync.Mutex // held by a write, and by whoever froze us
	frozen bool
	final  bool
	gen    int // counts freezes, so that an old limit does not thaw a new one
	writes int64
	state  sync.Mutex // guards frozen, final, gen
}

// Run writes until the context ends.
func Run(ctx context.Context, opts Options) error {
	g := &Guest{opts: opts}
	_ = os.Remove(opts.Socket)
	listener, err := net.Listen("unix", opts.Socket)
	if err != nil {
		return fmt.Errorf("guest: listen for freeze requests: %w", err)
	}
	var wg sync.WaitGroup
	wg.Add(1)
	go func() { defer wg.Done(); g.serve(listener) }()
	err = g.work(ctx)
	err = errors.Join(err, listener.Close())
	wg.Wait()
	return err
}

// work changes files on the disks, one after the other.
func (g *Guest) work(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "drover-guest-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	start := time.Now().UnixNano()
	for n := int64(0); ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(g.opts.Pause):
		}
		if !g.lock(ctx) {
			return nil
		}
		disk := g.opts.Disks[n%int64(len(g.opts.Disks))]
		err := writeFile(dir, disk, start, n/int64(len(g.opts.Disks)))
		g.writes++
		g.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// lock takes the mutex, or gives up when the context ends while frozen.
func (g *Guest) lock(ctx context.Context) bool {
	const pause = 2 * time.Millisecond
	for !g.mu.TryLock() {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(pause):
		}
	}
	return true
}

// writeFile puts a new file on the disk's ext4 and removes one that is old. It
// goes through debugfs, which needs neither a mount nor root.
func writeFile(dir string, disk Disk, run, n int64) error {
	size := 4096 + int64(uint64(n*7919+run)%uint64(maxFile-4096))
	content := filepath.Join(dir, "content")
	f, err := os.Create(content)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, rand.Reader, size)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	script := fmt.Sprintf("mkdir /app\nwrite %s /app/f-%d-%d\n", content, run, n)
	if n >= keepFiles {
		script += fmt.Sprintf("rm /app/f-%d-%d\n", run, n-keepFiles)
	}
	cmd := exec.Command(Tool("debugfs"), "-w", "-f", "-", disk.Path)
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("guest: write to disk %s: %w: %s", disk.Name, err, out)
	}
	return nil
}

// Tool finds a program of e2fsprogs, which many systems keep out of a user's
// PATH.
func Tool(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return name
}

// Request asks a guest to freeze or thaw.
type Request struct {
	Op      string `json:"op"` // freeze or thaw
	Machine string `json:"machine"`
	Epoch   uint64 `json:"epoch"`
	Seq     uint64 `json:"seq"`
	Final   bool   `json:"final"`
}

type response struct {
	Error string `json:"error,omitempty"`
}

// Ask sends a request to the guest behind the socket.
func Ask(socket string, r Request) error {
	conn, err := net.DialTimeout("unix", socket, requestTime)
	if err != nil {
		return fmt.Errorf("%s the guest: %w", r.Op, err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(requestTime))
	if err := json.NewEncoder(conn).Encode(r); err != nil {
		return fmt.Errorf("%s the guest: %w", r.Op, err)
	}
	var resp response
	if err := json.NewDecoder(bufio.NewReader(conn)).Decode(&resp); err != nil {
		return fmt.Errorf("%s the guest: %w", r.Op, err)
	}
	if resp.Error != "" {
		return fmt.Errorf("%s the guest: %s", r.Op, resp.Error)
	}
	return nil
}

func (g *Guest) serve(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_ = conn.SetDeadline(time.Now().Add(requestTime))
		var r Request
		var resp response
		if err := json.NewDecoder(conn).Decode(&r); err != nil {
			resp.Error = err.Error()
		} else if err := g.handle(r); err != nil {
			resp.Error = err.Error()
		}
		_ = json.NewEncoder(conn).Encode(resp)
		_ = conn.Close()
	}
}

func (g *Guest) handle(r Request) error {
	switch r.Op {
	case "freeze":
		return g.freeze(r)
	case "thaw":
		g.thaw(-1)
		return nil
	}
	return fmt.Errorf("unknown request %q", r.Op)
}

func (g *Guest) freeze(r Request) error {
	g.state.Lock()
	already := g.frozen
	g.state.Unlock()
	if !already {
		g.mu.Lock() // waits for the write that is under way
	}
	g.state.Lock()
	g.frozen, g.final = true, r.Final
	g.gen++
	gen := g.gen
	g.state.Unlock()
	if !r.Final {
		time.AfterFunc(g.opts.Limit, func() { g.thaw(gen) })
	}
	return g.note(r)
}

// thaw ends the freeze; with gen >= 0 only if it is still that freeze.
func (g *Guest) thaw(gen int) {
	g.state.Lock()
	defer g.state.Unlock()
	if !g.frozen || (gen >= 0 && (g.gen != gen || g.final)) {
		return
	}
	g.frozen = false
	g.mu.Unlock()
}

// note appends the disks' digests to the ledger.
func (g *Guest) note(r Request) error {
	e := Entry{Machine: r.Machine, Epoch: r.Epoch, Seq: r.Seq, Final: r.Final, Time: time.Now(), Writes: g.writes, Disks: map[string]string{}}
	for _, d := range g.opts.Disks {
		sum, err := Digest(d.Path)
		if err != nil {
			return err
		}
		e.Disks[d.Name] = sum
	}
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(g.opts.Ledger, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Close())
}

// Digest is the SHA-256 of a whole file, hex.
func Digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.CopyBuffer(h, struct{ io.Reader }{f}, make([]byte, 1<<20)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// ReadLedger reads the entries of a ledger by (epoch, seq). Where a cut was tried
// twice under one number, the later try counts.
func ReadLedger(path string) (map[[2]uint64]Entry, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	out := map[[2]uint64]Entry{}
	dec := json.NewDecoder(f)
	for {
		var e Entry
		if err := dec.Decode(&e); errors.Is(err, io.EOF) {
			return out, nil
		} else if err != nil {
			return nil, fmt.Errorf("read ledger %s: %w", path, err)
		}
		out[[2]uint64{e.Epoch, e.Seq}] = e
	}
}
