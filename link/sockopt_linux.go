package link

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// setUserTimeout ends a connection whose sent bytes nobody has acknowledged for
// d. Without it the kernel tries for a quarter of an hour.
func setUserTimeout(tcp *net.TCPConn, d time.Duration) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	// Best effort: silence is noticed above TCP too.
	raw.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
	})
}
