package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"testing"
	"time"

	"drover/agent/controlapi"
	"drover/agent/quiesce"
	"drover/agent/session"
	"drover/agent/tracker"
	"drover/agent/tracker/scan"
	"drover/datapath/cachestore"
	"drover/datapath/changeset"
	"drover/datapath/codec"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/replica/file"
	"drover/datapath/server"
	"drover/datapath/stream"
	"drover/datapath/wire/wiretest"
)

// world is what both of our processes know; it lies in their directory.
type world struct {
	Dir      string       `json:"dir"`
	Address  string       `json:"address"`
	Machines []machine    `json:"machines"`
	Choice   codec.Choice `json:"choice"`
	Cut      time.Duration
	Told     bool // the tracker is told of writes, as by the kernel of a block device
	Rate     int  // blocks that the agent's writer changes per second; 0 none. With Told
	Seconds  int  // for so long
}

type machine struct {
	ID   ident.MachineID `json:"id"`
	Path string          `json:"path"` // of its one disk
	Size int64           `json:"size"`
}

func (m machine) disk() ident.DiskID { return ident.NewDiskID(m.ID, "disk") }

const (
	instance = "4c4c4544-0042-3510-8054-b7c04f4e4d31"
	look     = 2 * time.Millisecond
)

var serverPeer = ident.Peer{Role: ident.RoleProcessServer, Name: "ps-1"}

// fatal ends the process where a test would end.
type fatal struct{ testing.TB }

func (fatal) Helper()           {}
func (fatal) Fatal(args ...any) { slog.Error("fatal", "args", args); os.Exit(1) }

func (w *world) save() error {
	b, err := json.Marshal(w)
	return errors.Join(err, os.WriteFile(filepath.Join(w.Dir, "world.json"), b, 0o600))
}

func loadWorld(dir string) (*world, error) {
	b, err := os.ReadFile(filepath.Join(dir, "world.json"))
	if err != nil {
		return nil, err
	}
	w := new(world)
	return w, json.Unmarshal(b, w)
}

// serve is the process server: it prints each machine's status as it changes, and
// begins a resync for each line on its standard input.
func serve(ctx context.Context, dir string) error {
	w, err := loadWorld(dir)
	if err != nil {
		return err
	}
	store, err := file.Open(filepath.Join(dir, "store"))
	if err != nil {
		return err
	}
	cache, err := cachestore.NewDirectory(filepath.Join(dir, "cache"))
	if err != nil {
		return err
	}
	debug.SetGCPercent(server.GCPercent) // as the process server does
	s, err := server.New(server.Config{
		Name: serverPeer.Name, StateDir: filepath.Join(dir, "state"), TLS: wiretest.Load(fatal{}, dir).Server(serverPeer),
		Store: store, Cache: cache, SpoolLimit: 8 << 30, Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Keys: func(context.Context, ident.MachineID, string) (changeset.Key, error) {
			return changeset.Key{ID: "k", Secret: [32]byte{7}}, nil
		},
	})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", w.Address)
	if err != nil {
		return err
	}
	for _, m := range w.Machines {
		spec := replica.Spec{Machine: m.ID, Name: "m", KeyID: "k",
			Disks: []replica.Disk{{Disk: changeset.Disk{ID: m.disk(), Size: m.Size}, BackingUUID: "disk"}}}
		g := stream.Grant{Epoch: 1, Instance: instance, Spec: spec, Cut: w.Cut, Retention: replica.DefaultRetention(), Compression: w.Choice}
		if err := s.Grant(ctx, g); err != nil {
			return err
		}
	}
	var others sync.WaitGroup
	others.Go(func() { report(ctx, s, w) })
	go resyncs(ctx, s, w) // ends with its input
	err = s.Serve(ctx, listener)
	others.Wait()
	return errors.Join(err, store.Close())
}

func report(ctx context.Context, s *server.Server, w *world) {
	out := json.NewEncoder(os.Stdout)
	last := make([]string, len(w.Machines))
	for ctx.Err() == nil {
		for i, m := range w.Machines {
			st, err := s.Status(m.ID)
			if err != nil {
				continue
			}
			key, _ := json.Marshal([]any{st.Complete, st.Generation, st.Points, st.Applied, st.Broken})
			if string(key) != last[i] {
				last[i] = string(key)
				_ = out.Encode(st) // the parent is gone: nobody wants to know
			}
		}
		time.Sleep(look)
	}
}

func resyncs(ctx context.Context, s *server.Server, w *world) {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		for _, m := range w.Machines {
			err := s.MarkBroken(ctx, m.ID, 1, stream.Broken{Code: "DRV-3001", Cause: "measured", Since: time.Now()})
			if err = errors.Join(err, s.StartBase(ctx, m.ID, 1, "measured", false)); err != nil {
				slog.Error("resync", "error", err)
			}
		}
	}
}

// agents runs the agents of all machines in one process.
func agents(ctx context.Context, dir string) error {
	w, err := loadWorld(dir)
	if err != nil {
		return err
	}
	ca := wiretest.Load(fatal{}, dir)
	var all sync.WaitGroup
	for _, m := range w.Machines {
		all.Go(func() {
			var t tracker.Tracker = scan.New() // what an agent takes for a file
			hooks := &quiesce.Hooks{}
			if w.Told {
				// The writer does not wait for a cut: what it changes meanwhile goes with the next.
				hooks.Pre, hooks.Post, hooks.Timeout = []string{"/bin/true"}, []string{"/bin/true"}, limit
				wr := newWriter(m.Path, m.Size, w.Rate, time.Duration(w.Seconds)*time.Second)
				t = wr
				all.Go(func() { wr.run(ctx) })
			}
			source := session.NewSource(session.Options{Machine: m.ID, Instance: instance, Version: "peers", Tracker: t, Hooks: hooks,
				Find: func(string) (string, error) { return m.Path, nil }, Logger: slog.New(slog.DiscardHandler)})
			target := session.Target{Epoch: 1, Address: w.Address, TLS: ca.Client(wiretest.Agent(m.ID), serverPeer),
				Disks: []controlapi.Disk{{ID: m.disk(), BackingUUID: "disk", Size: m.Size}}}
			for ctx.Err() == nil {
				if err := source.Run(ctx, target); err != nil && ctx.Err() == nil {
					slog.Warn("session", "error", err)
				}
				time.Sleep(look)
			}
			_ = source.Close(context.WithoutCancel(ctx))
		})
	}
	all.Wait()
	return nil
}
