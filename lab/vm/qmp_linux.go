package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
)

// errGone is the answer of a QEMU that has ended.
var errGone = errors.New("the virtual machine has ended")

// qmp talks with QEMU: https://www.qemu.org/docs/master/interop/qmp-spec.html
type qmp struct {
	conn net.Conn
	hear func(Event) // called for each event, in their order

	mu      sync.Mutex // guards what follows
	last    int
	waiting map[int]chan answer
	ended   bool
}

// Event is something that QEMU tells unasked: RESET, SHUTDOWN, WATCHDOG, GUEST_PANICKED.
type Event struct {
	Name string          `json:"event"`
	Data json.RawMessage `json:"data"`
}

type answer struct {
	ID     int             `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Desc string `json:"desc"`
	} `json:"error"`
	Event
}

// listen reads until QEMU ends.
func (q *qmp) listen() {
	in := json.NewDecoder(q.conn)
	for {
		var a answer
		if err := in.Decode(&a); err != nil {
			break
		}
		if a.Name != "" {
			q.hear(a.Event)
			continue
		}
		q.mu.Lock()
		if c := q.waiting[a.ID]; c != nil { // the greeting has no id
			delete(q.waiting, a.ID)
			c <- a
		}
		q.mu.Unlock()
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	for _, c := range q.waiting {
		close(c)
	}
	q.waiting = nil
}

// do runs a command and waits for its end.
func (q *qmp) do(ctx context.Context, command string, arguments map[string]any) (json.RawMessage, error) {
	c := make(chan answer, 1)
	q.mu.Lock()
	if q.ended {
		q.mu.Unlock()
		return nil, fmt.Errorf("%s: %w", command, errGone)
	}
	q.last++
	id := q.last
	q.waiting[id] = c
	order := map[string]any{"execute": command, "id": id}
	if arguments != nil {
		order["arguments"] = arguments
	}
	b, err := json.Marshal(order)
	if err == nil {
		_, err = q.conn.Write(b)
	}
	q.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", command, errors.Join(errGone, err))
	}
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("%s: %w", command, ctx.Err())
	case a, ok := <-c:
		if !ok {
			return nil, fmt.Errorf("%s: %w", command, errGone)
		}
		if a.Error != nil {
			return nil, fmt.Errorf("%s: %s", command, a.Error.Desc)
		}
		return a.Return, nil
	}
}
