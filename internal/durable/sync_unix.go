//go:build !windows

package durable

import "os"

// flush flushes a file, or a folder itself: the name of a renamed file is content of its folder.
func flush(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
