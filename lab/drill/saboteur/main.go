// Command saboteur stands in the place of a program of an OS version that is meant
// to be bad, for the drill bad-os. What it does is the one word in the file
// /usr/share/holdfast/sabotage; where it lets the real program run, that lies beside
// it with the ending .real. It is in no OS image but those that the drill builds.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// mark is a variable of the firmware that outlives a boot, and the disks.
const mark = "/sys/firmware/efi/efivars/HoldfastDrill-6f1a5cf0-35a1-4b1e-8f4c-6d5b0c3c9a11"

func main() {
	word, err := os.ReadFile("/usr/share/holdfast/sabotage")
	if err != nil {
		word = []byte(err.Error())
	}
	what := strings.TrimSpace(string(word))
	tell("sabotage: " + what)
	switch what {
	case "panic", "kubelet": // process 1 that ends panics the kernel; a runtime that ends leaves the kubelet alone
	case "hang":
		for { // not select{}: Go's runtime would see a deadlock and end the process, and the kernel panic
			time.Sleep(time.Hour)
		}
	case "cold":
		if seen() {
			tell("sabotage: this is not the first boot")
			os.Exit(1)
		}
		tell("sabotage: first boot, all is well")
		real()
	case "late":
		late()
	}
	os.Exit(1)
}

// tell writes to the kernel's log, which the console shows.
func tell(text string) {
	if f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
		fmt.Fprintf(f, "<5>%s\n", text)
		f.Close()
	}
}

// seen tells whether this program ran in a boot before this one, and notes that it ran.
func seen() bool {
	syscall.Mount("sysfs", "/sys", "sysfs", 0, "")
	syscall.Mount("efivarfs", "/sys/firmware/efi/efivars", "efivarfs", 0, "")
	if _, err := os.Stat(mark); err == nil {
		return true
	}
	if err := os.WriteFile(mark, []byte{7, 0, 0, 0, 1}, 0o600); err != nil {
		tell("sabotage: " + err.Error())
	}
	return false
}

// self is where this program lies; process 1 is called by another name.
func self() string {
	path, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return "/usr/lib/holdfast/machined"
	}
	return path
}

// real runs the real program in the place of this one.
func real() {
	tell("sabotage: " + syscall.Exec(self()+".real", os.Args, os.Environ()).Error())
}

// late lets the real program run until the machine has been ready for a while, and then never again.
func late() {
	const over = "/run/holdfast-sabotage"
	if _, err := os.Stat(over); err == nil {
		return
	}
	c := exec.Command(self()+".real", os.Args[1:]...)
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		tell("sabotage: " + err.Error())
		return
	}
	go func() {
		for {
			if _, err := os.Stat("/run/holdfast/control-plane.ready"); err == nil {
				break
			}
			time.Sleep(time.Second)
		}
		time.Sleep(90 * time.Second)
		tell("sabotage: ready for 90 s, that is enough")
		os.WriteFile(over, nil, 0o600)
		c.Process.Kill()
	}()
	c.Wait()
}
