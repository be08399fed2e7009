//go:build !linux && !darwin

package flock

import (
	"errors"
	"os"
)

func try(*os.File) error { return errors.New("lock files are not supported on this system") }
