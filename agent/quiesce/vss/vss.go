// Package vss makes consistent points on Windows: the volumes of the protected disks get
// shadow copies, all at one moment, and what a point needs is read from those while the
// machine goes on. It drives diskshadow, which Windows Server has, with scripts of fixed
// words; the only thing that is put into one are names of volumes of a known form.
//
// A shadow copy has to outlive the diskshadow that makes it, and so it would outlive a
// crash of the agent. What diskshadow prints therefore goes into a file, which is the
// note of what is to be deleted: it is there before anything is made, diskshadow itself
// writes into it, and it is removed when the shadow copies are known to be gone.
//
//	vss.go     making and deleting
//	output.go  what diskshadow prints
//	layout.go  which parts of disks have shadow copies
//
// Nothing here calls Windows, so that it is tested everywhere, with a double that plays
// back what diskshadow printed.
package vss

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Bounds.
const (
	// DefaultTimeout is how long diskshadow may take. VSS itself gives writers 60 s to
	// freeze, and makes the copies within 10 s of that.
	DefaultTimeout = 3 * time.Minute
	maxVolumes     = 64 // of a set; as VSS has it
	maxFailed      = 16 // writers that are told of
	maxReason      = 300
	maxOutput      = 4 << 20 // bytes
	killWait       = 5 * time.Second
)

// The files in the provider's folder. made-*.txt are the notes.
const (
	scriptName = "diskshadow.dsh"
	deleteName = "delete.txt"
	notePrefix = "made-"
	noteSuffix = ".txt"
	maxNotes   = 64
)

// ErrUnfinished is wrapped when a diskshadow of an earlier agent may still be at work.
var ErrUnfinished = errors.New("an earlier diskshadow may still be at work")

// Provider makes shadow copies. Its methods are called by one goroutine at a time.
type Provider struct {
	// Dir is a folder that only the agent writes to.
	Dir string
	// Program is diskshadow with arguments before ours.
	Program []string
	// Layout finds the volumes on the disks.
	Layout func(disks []string) (*Layout, error)
	// Timeout of each run of diskshadow; 0 is DefaultTimeout.
	Timeout time.Duration
}

// Set is some shadow copies of one moment.
type Set struct {
	ID      string
	Devices map[string]string // by volume
	// Begun is before the moment, Took how long it took to make them: applications stood
	// still no longer.
	Begun time.Time
	Took  time.Duration
	// Writers says that the applications took part, and Failed which did not succeed.
	Writers bool
	Failed  []string

	note string
}

func (p *Provider) timeout() time.Duration {
	if p.Timeout > 0 {
		return p.Timeout
	}
	return DefaultTimeout
}

// Create makes shadow copies of the volumes. With writers the applications are asked to
// take part. Whatever an earlier call or process has left is deleted first.
func (p *Provider) Create(ctx context.Context, volumes []string, writers bool) (*Set, error) {
	if len(volumes) == 0 || len(volumes) > maxVolumes {
		return nil, fmt.Errorf("shadow copies of %d volumes, want 1 to %d", len(volumes), maxVolumes)
	}
	if _, err := p.Recover(ctx); err != nil {
		return nil, err
	}
	script := []string{"set context persistent nowriters"}
	if writers {
		script = []string{"set context persistent"}
	}
	for i, v := range volumes {
		if v == "" || volumePattern.FindString(v) != v {
			return nil, fmt.Errorf("shadow copy of volume %q: that is no name of a volume", v)
		}
		script = append(script, fmt.Sprintf("add volume %s alias %s", v, alias(i)))
	}
	script = append(script, "create")
	if writers {
		script = append(script, "list writers status")
	}
	s := &Set{Begun: time.Now(), note: notePrefix + fmt.Sprint(time.Now().UnixNano()) + noteSuffix, Devices: map[string]string{}}
	text, err := p.run(ctx, script, s.note)
	s.Took = time.Since(s.Begun)
	if err == nil {
		err = s.take(parse(text), volumes, writers, text)
	}
	if err != nil {
		err = fmt.Errorf("make shadow copies: %w", err)
		return nil, errors.Join(err, p.clear(context.WithoutCancel(ctx), s.note, true))
	}
	return s, nil
}

// take holds what diskshadow said against what it was asked for.
func (s *Set) take(o output, volumes []string, writers bool, text []byte) error {
	if o.set == "" {
		return fmt.Errorf("diskshadow did not make them: %s", because(o, text))
	}
	s.ID = o.set
	used := map[string]bool{}
	for i, v := range volumes {
		device := o.devices[alias(i)]
		if device == "" || used[device] || !strings.EqualFold(o.volumes[alias(i)], v) {
			return fmt.Errorf("diskshadow does not say where the shadow copy of %s is: %s", v, because(o, text))
		}
		used[device], s.Devices[v] = true, device
	}
	s.Writers, s.Failed = writers, o.failed
	if writers && !o.states && len(o.failed) == 0 {
		s.Failed = []string{"diskshadow did not tell the writers' states"}
	}
	return nil
}

// because is what diskshadow says itself: a writer that failed, or its last words.
func because(o output, text []byte) string {
	if len(o.failed) > 0 {
		return strings.Join(o.failed, "; ")
	}
	return tail(text)
}

// Delete deletes a set, whatever ctx says. After an error it is tried again by Recover.
func (p *Provider) Delete(ctx context.Context, s *Set) error {
	return p.clear(context.WithoutCancel(ctx), s.note, true)
}

// Recover deletes the shadow copies that are noted, of this or an earlier process.
func (p *Provider) Recover(ctx context.Context) (deleted int, err error) {
	entries, err := os.ReadDir(p.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("left shadow copies: %w", err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), notePrefix) || !strings.HasSuffix(e.Name(), noteSuffix) || deleted == maxNotes {
			continue
		}
		if e := p.clear(ctx, e.Name(), false); e != nil {
			err = errors.Join(err, e)
		} else {
			deleted++
		}
	}
	return deleted, err
}

// clear deletes what a note tells of, and then the note. That diskshadow says so is not
// enough: it must not list them any more. That there was nothing to delete is no error.
// ended says that the diskshadow that writes the note has ended.
func (p *Provider) clear(ctx context.Context, note string, ended bool) error {
	path := filepath.Join(p.Dir, note)
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete shadow copies: %w", err)
	}
	text, err := read(path)
	if err != nil {
		return fmt.Errorf("delete shadow copies: %w", err)
	}
	ids := sets(text)
	if age := time.Since(info.ModTime()); len(ids) == 0 && !ended && age >= 0 && age < p.timeout() {
		return fmt.Errorf("delete shadow copies: %w; it is looked at again with the next recovery point, or delete %s when there is no diskshadow", ErrUnfinished, path)
	}
	slices.Sort(ids)
	for _, id := range slices.Compact(ids) {
		_, deleted := p.run(ctx, []string{"delete shadows set " + id}, deleteName)
		list, listed := p.run(ctx, []string{"list shadows all"}, deleteName)
		if deleted != nil && listed != nil {
			return fmt.Errorf("delete shadow copies: set %s: %w", id, errors.Join(deleted, listed))
		}
		if strings.Contains(strings.ToLower(string(list)), strings.ToLower(id)) {
			err := errors.Join(deleted, errors.New("diskshadow does not delete it"))
			return fmt.Errorf("delete shadow copies: set %s is still there: %w; `vssadmin list shadows` shows it", id, err)
		}
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("delete shadow copies: %w", err)
	}
	return nil
}

// run lets diskshadow carry out a script, and gives what it has printed into a file of
// the folder.
func (p *Provider) run(ctx context.Context, script []string, into string) ([]byte, error) {
	if len(p.Program) == 0 {
		return nil, errors.New("there is no diskshadow on this machine; Windows Server has it")
	}
	if err := os.MkdirAll(p.Dir, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(p.Dir, scriptName)
	if err := os.WriteFile(path, []byte(strings.Join(script, "\r\n")+"\r\n"), 0o600); err != nil {
		return nil, err
	}
	out, err := os.OpenFile(filepath.Join(p.Dir, into), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600) //nolint:gosec // one of our names
	if err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, p.timeout())
	defer cancel()
	argv := append(slices.Clone(p.Program), "/s", path)
	cmd := exec.CommandContext(limited, argv[0], argv[1:]...) //nolint:gosec // diskshadow
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = out, out, killWait
	err = cmd.Run()
	err = errors.Join(err, out.Sync(), out.Close())
	text, readErr := read(out.Name())
	switch {
	case errors.Is(limited.Err(), context.DeadlineExceeded) && ctx.Err() == nil:
		return text, fmt.Errorf("diskshadow took longer than %s and was ended", p.timeout())
	case err != nil:
		return text, fmt.Errorf("diskshadow: %w: %s", err, because(parse(text), text))
	}
	return text, readErr
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path) //nolint:gosec // one of our names
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxOutput))
	return b, errors.Join(err, f.Close())
}
