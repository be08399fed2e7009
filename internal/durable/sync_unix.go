//go:build !windows

package durable

import "os"

// syncDir flushes the folder itself: the name of a renamed file is content of its folder.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
