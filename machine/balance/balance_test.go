package balance

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// echo serves lines with its name in front until the test ends.
func echo(t *testing.T, name string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for s := bufio.NewScanner(conn); s.Scan(); {
					fmt.Fprintf(conn, "%s %s\n", name, s.Text())
				}
			}()
		}
	}()
	return l
}

func start(t *testing.T, config Config) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	config.Listen = l
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- New(config).Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return l.Addr().String()
}

func ask(t *testing.T, conn net.Conn, line string) (string, error) {
	t.Helper()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintln(conn, line); err != nil {
		return "", err
	}
	return bufio.NewReader(conn).ReadString('\n')
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestForwardsToTheFirstLiveBackend(t *testing.T) {
	gone := echo(t, "gone")
	gone.Close()
	address := start(t, Config{Backends: []string{gone.Addr().String(), echo(t, "two").Addr().String()}})
	got, err := ask(t, dial(t, address), "hello")
	if err != nil || got != "two hello\n" {
		t.Errorf("got %q, %v; want the second backend's answer", got, err)
	}
}

func TestCutsConnectionsThroughASilentBackend(t *testing.T) {
	var silent atomic.Bool
	one, two := echo(t, "one"), echo(t, "two")
	probe := func(_ context.Context, address string) error {
		if silent.Load() && address == one.Addr().String() {
			return errors.New("no answer")
		}
		return nil
	}
	address := start(t, Config{Backends: []string{one.Addr().String(), two.Addr().String()}, Probe: probe})
	conn := dial(t, address)
	if got, err := ask(t, conn, "a"); err != nil || got != "one a\n" {
		t.Fatalf("got %q, %v; want an answer of one", got, err)
	}
	silent.Store(true)
	// The server still echoes: only the probe knows that it is dead. The connection must end by itself.
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("read: %v; want the connection cut", err)
	}
	if got, err := ask(t, dial(t, address), "b"); err != nil || got != "two b\n" {
		t.Errorf("got %q, %v; want an answer of two", got, err)
	}
}
