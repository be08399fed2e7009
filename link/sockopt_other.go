//go:build !linux

package link

import (
	"net"
	"time"
)

// setUserTimeout is Linux's; elsewhere silence is noticed above TCP only.
func setUserTimeout(*net.TCPConn, time.Duration) {}
