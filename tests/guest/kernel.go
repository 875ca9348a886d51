package guest

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// kernelDir is where tests/setup.sh puts the kernel of the guest and its modules.
const kernelDir = "../../build/guest"

// kernel is the guest's kernel.
type kernel struct {
	image   string
	modules map[string]string // paths by name, with _ for -
}

func findKernel(dir string) (*kernel, error) {
	images, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if err != nil {
		return nil, err
	}
	if len(images) != 1 {
		return nil, fmt.Errorf("%s has %d kernels, one is needed; `make setup` puts it there", dir, len(images))
	}
	k := &kernel{image: images[0], modules: map[string]string{}}
	err = filepath.WalkDir(filepath.Join(dir, "lib", "modules"), func(path string, d fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok && err == nil && d.Type().IsRegular() {
			k.modules[moduleName(name)] = path
		}
		return err
	})
	return k, err
}

func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// files gives the modules and all that they need, in the order in which they are to
// be loaded.
func (k *kernel) files(names ...string) ([]file, error) {
	var out []file
	seen := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		if seen[name] {
			return nil
		}
		seen[name] = true
		path, ok := k.modules[name]
		if !ok {
			return fmt.Errorf("the kernel %s has no module %s", k.image, name)
		}
		needs, err := depends(path)
		if err != nil {
			return fmt.Errorf("module %s: %w", path, err)
		}
		for _, n := range needs {
			if err := add(n); err != nil {
				return err
			}
		}
		data, err := os.ReadFile(path) //nolint:gosec // of the test's kernel
		if err != nil {
			return err
		}
		out = append(out, file{fmt.Sprintf("modules/%02d-%s.ko", len(out), name), fileMode, data})
		return nil
	}
	for _, n := range names {
		if err := add(n); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// depends reads which modules a module needs; it says so itself.
func depends(path string) (names []string, err error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("it says nothing of itself")
	}
	data, err := section.Data()
	if err != nil {
		return nil, err
	}
	for _, line := range strings.Split(string(data), "\x00") {
		if list, ok := strings.CutPrefix(line, "depends="); ok && list != "" {
			for _, n := range strings.Split(list, ",") {
				names = append(names, moduleName(n))
			}
		}
	}
	return names, nil
}
