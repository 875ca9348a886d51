// Command saved runs a simulated vCenter of many VMs, loaded from a saved model: to make
// thousands of VMs takes a minute, to load them seconds. What is not saved yet is made and
// saved first. The model is in the form of govc's object.save, which the simulator loads.
//
// It prints one line of JSON, an Info, and runs until its standard input ends.
package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/vmware/govmomi/simulator"
	_ "github.com/vmware/govmomi/vapi/simulator" // its REST; tags are not saved
)

// form counts what changes the saved model: of it, and of how it is made.
const form = 1

// Info is what is printed.
type Info struct {
	URL        string  `json:"url"`
	Thumbprint string  `json:"thumbprint"` // SHA-256 of the certificate
	Made       float64 `json:"made"`       // seconds that it took to make and to save; 0: it was there
	Loaded     float64 `json:"loaded"`     // seconds
	Bytes      int64   `json:"bytes"`      // of the saved model
}

func main() {
	vms := flag.Int("vms", 2000, "number of VMs, a multiple of four")
	dir := flag.String("dir", "build/vcenters", "directory of saved models")
	flag.Parse()
	if err := run(*dir, *vms); err != nil {
		fmt.Fprintln(os.Stderr, "saved:", err)
		os.Exit(1)
	}
}

func run(dir string, vms int) error {
	if vms < 4 || vms%4 != 0 {
		return fmt.Errorf("%d VMs: want a multiple of four", vms)
	}
	var info Info
	saved := filepath.Join(dir, fmt.Sprintf("%s-%d-%d", version(), form, vms))
	if _, err := os.Stat(saved); errors.Is(err, fs.ErrNotExist) {
		begun := time.Now()
		if err := create(context.Background(), saved, vms); err != nil {
			return fmt.Errorf("save a vCenter of %d VMs: %w", vms, err)
		}
		info.Made = time.Since(begun).Seconds()
	}
	begun := time.Now()
	m := simulator.VPX()
	if err := m.Load(saved); err != nil {
		return fmt.Errorf("load %s; remove it to have it made anew: %w", saved, err)
	}
	info.Loaded = time.Since(begun).Seconds()
	m.Service.RegisterEndpoints = true
	server := serve(m)
	defer server.Close()
	info.URL, info.Thumbprint = "https://"+server.URL.Host+"/sdk", fmt.Sprintf("%X", sha256.Sum256(server.Certificate().Raw))
	err := filepath.WalkDir(saved, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		file, err := d.Info()
		if err == nil {
			info.Bytes += file.Size()
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(info); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// version is that of the simulator.
func version() string {
	build, _ := debug.ReadBuildInfo()
	for _, d := range build.Deps {
		if d.Path == "github.com/vmware/govmomi" {
			return d.Version
		}
	}
	return "unknown"
}

func serve(m *simulator.Model) *simulator.Server {
	m.Service.TLS = new(tls.Config)
	return m.Service.NewServer()
}

// create makes a vCenter of four clusters with four hosts each, and saves it in one step.
func create(ctx context.Context, saved string, vms int) error {
	m := simulator.VPX()
	m.Cluster, m.Machine, m.Autostart = 4, vms/4, false
	m.Host, m.ClusterHost = 0, 4
	if err := m.Create(); err != nil {
		return err
	}
	defer m.Remove()
	server := serve(m)
	defer server.Close()
	if err := os.MkdirAll(filepath.Dir(saved), 0o755); err != nil {
		return err
	}
	part, err := os.MkdirTemp(filepath.Dir(saved), "part-")
	if err != nil {
		return err
	}
	if err := save(ctx, server, part); err != nil {
		return errors.Join(err, os.RemoveAll(part))
	}
	return os.Rename(part, saved)
}
