package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// batchMax bounds how many waiting writes share one transaction.
const batchMax = 512

// op is one write; do runs on the writer's connection inside a savepoint of its own.
type op struct {
	do  func(*sql.Conn) error
	err chan error
}

// update runs do in a transaction and returns once its effect is on disk. Writes
// that wait together are flushed together; one that fails takes back only itself.
func (s *Store) update(ctx context.Context, do func(*sql.Conn) error) error {
	o := &op{do: do, err: make(chan error, 1)}
	select {
	case s.ops <- o:
	case <-s.stop:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	// From here the write is taken: whether it landed must be known, so
	// the context no longer ends the wait. The writer always answers.
	return <-o.err
}

// run is the writer: the only goroutine that changes the file.
func (s *Store) run(db *sql.DB) {
	defer close(s.done)
	defer db.Close()
	conn, err := db.Conn(context.Background())
	if err == nil {
		defer conn.Close()
	}
	for {
		select {
		case <-s.stop:
			return
		case first := <-s.ops:
			if err != nil {
				first.err <- err
				continue
			}
			s.batch(conn, first)
		}
	}
}

// batch runs first and whatever else waits by now in one transaction.
func (s *Store) batch(conn *sql.Conn, first *op) {
	ops, errs := []*op{first}, []error(nil)
	err := exec(conn, "BEGIN IMMEDIATE")
	if err == nil {
		errs = append(errs, savepoint(conn, first.do))
	fill:
		for len(ops) < batchMax {
			select {
			case o := <-s.ops:
				ops = append(ops, o)
				errs = append(errs, savepoint(conn, o.do))
			default:
				break fill
			}
		}
		if err = exec(conn, "COMMIT"); err != nil {
			// SQLite may have rolled back by itself (disk full); a second
			// rollback is then refused, which is fine.
			_ = exec(conn, "ROLLBACK")
		}
	}
	for i, o := range ops {
		if err != nil {
			o.err <- fmt.Errorf("write to the store: %w", err)
			continue
		}
		o.err <- errs[i]
	}
}

func savepoint(conn *sql.Conn, do func(*sql.Conn) error) error {
	if err := exec(conn, "SAVEPOINT one"); err != nil {
		return err
	}
	if err := do(conn); err != nil {
		return errors.Join(err, exec(conn, "ROLLBACK TO one"), exec(conn, "RELEASE one"))
	}
	return exec(conn, "RELEASE one")
}

func exec(conn *sql.Conn, query string, args ...any) error {
	_, err := conn.ExecContext(context.Background(), query, args...)
	return err
}
