package guest

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// file is a file of an initramfs.
type file struct {
	name string // without a slash in front; its directories are made first
	mode uint32
	data []byte
}

const (
	dirMode  = 0o040755
	fileMode = 0o100644
	execMode = 0o100755
	trailer  = "TRAILER!!!"
)

// writeCPIO writes an initramfs in the "newc" format: for each file a header of
// hexadecimal numbers, its name and its content, each padded to a multiple of four.
func writeCPIO(w io.Writer, files []file) error {
	made := map[string]bool{}
	inode := 0
	put := func(f file) error {
		inode++
		header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", inode, f.mode, 0, 0, 1, 0, len(f.data), 0, 0, 0, 0, len(f.name)+1, 0)
		text := header + f.name + "\x00"
		_, err := io.WriteString(w, text+pad(len(text)))
		_, err2 := w.Write(f.data)
		_, err3 := io.WriteString(w, pad(len(f.data)))
		return errors.Join(err, err2, err3)
	}
	for _, f := range files {
		for i, c := range f.name {
			if dir := f.name[:i]; c == '/' && !made[dir] {
				made[dir] = true
				if err := put(file{name: dir, mode: dirMode}); err != nil {
					return err
				}
			}
		}
		if err := put(f); err != nil {
			return err
		}
	}
	return put(file{name: trailer})
}

func pad(n int) string { return strings.Repeat("\x00", -n&3) }
