package modules

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Folder is where the modules of the kernel that runs lie.
func Folder() string {
	var name unix.Utsname
	unix.Uname(&name)
	return "/usr/lib/modules/" + unix.ByteSliceToString(name.Release[:])
}

// Helper is /sbin/modprobe as the kernel calls it: options, then names. It is a
// safety net: what is used is loaded at boot, since a packet filter's
// transaction starts over for each module that it lacks. It returns the exit code.
func Helper(args []string) int {
	l, err := Open(Folder())
	if err != nil {
		return 1
	}
	code := 0
	for _, name := range args {
		if strings.HasPrefix(name, "-") {
			continue
		}
		said := "<6>holdfast: the kernel asked for module %q, which the boot had not loaded\n"
		if l.Load(name) != nil {
			code = 1
			said = "<7>holdfast: the kernel asked for module %q, and there is none\n"
		}
		if k, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
			fmt.Fprintf(k, said, name)
			k.Close()
		}
	}
	return code
}

// EnableHelper lets the kernel call the helper, or not. While a boot loads what is
// needed by name, calls would only be slow ways to the same, one process each.
func EnableHelper(on bool) error {
	path := ""
	if on {
		path = "/sbin/modprobe"
	}
	if err := os.WriteFile("/proc/sys/kernel/modprobe", []byte(path+"\n"), 0); err != nil {
		return fmt.Errorf("set the kernel's helper for modules: %w", err)
	}
	return nil
}
