package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// Machine is what was seen of one machine.
type Machine struct {
	ID             string
	FirstSeen      time.Time
	LastSeen       time.Time
	Sent, Received uint64 // bytes on the wire, all sessions, all time
}

// Sighting is one update of a machine: Sent and Received are added.
type Sighting struct {
	ID             string
	At             time.Time
	Sent, Received uint64
}

// Saw notes sightings, all in one transaction.
func (s *Store) Saw(ctx context.Context, seen ...Sighting) error {
	if len(seen) == 0 {
		return nil
	}
	return s.update(ctx, func(c *sql.Conn) error {
		for _, m := range seen {
			at := m.At.UnixMilli()
			if err := exec(c, `INSERT INTO machine (id, first_seen, last_seen, sent, received) VALUES (?,?,?,?,?)
				ON CONFLICT (id) DO UPDATE SET last_seen = max(last_seen, excluded.last_seen), sent = sent + excluded.sent, received = received + excluded.received`,
				m.ID, at, at, int64(m.Sent), int64(m.Received)); err != nil {
				return fmt.Errorf("note machine %s: %w", m.ID, err)
			}
		}
		return nil
	})
}

const selectMachine = "SELECT id, first_seen, last_seen, sent, received FROM machine"

// Machine returns what was seen of one machine, or ErrNotFound.
func (s *Store) Machine(ctx context.Context, id string) (Machine, error) {
	m, err := scanMachine(s.read.QueryRowContext(ctx, selectMachine+" WHERE id = ?", id))
	if errors.Is(err, sql.ErrNoRows) {
		return Machine{}, ErrNotFound
	}
	return m, err
}

// Machines returns every machine that was ever seen, by its ID.
func (s *Store) Machines(ctx context.Context) (map[string]Machine, error) {
	rows, err := s.read.QueryContext(ctx, selectMachine)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := map[string]Machine{}
	for rows.Next() {
		m, err := scanMachine(rows)
		if err != nil {
			return nil, err
		}
		all[m.ID] = m
	}
	return all, rows.Err()
}

func scanMachine(row interface{ Scan(...any) error }) (Machine, error) {
	var m Machine
	var first, last, sent, received int64
	if err := row.Scan(&m.ID, &first, &last, &sent, &received); err != nil {
		return Machine{}, err
	}
	m.FirstSeen, m.LastSeen = time.UnixMilli(first).UTC(), time.UnixMilli(last).UTC()
	m.Sent, m.Received = uint64(sent), uint64(received)
	return m, nil
}
