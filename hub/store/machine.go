package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// Held names the slice that a machine holds, and what it takes to cut it again.
type Held struct {
	Slice   ID
	N       uint64
	SiteDir string
}

// Machine is what was seen of one machine.
type Machine struct {
	ID             string
	FirstSeen      time.Time
	LastSeen       time.Time
	Sent, Received uint64 // bytes on the wire, all sessions, all time
	Held           Held   // zero when unknown
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

// Holds notes which slice a machine holds.
func (s *Store) Holds(ctx context.Context, id string, at time.Time, h Held) error {
	return s.update(ctx, func(c *sql.Conn) error {
		ms := at.UnixMilli()
		return exec(c, `INSERT INTO machine (id, first_seen, last_seen, held, held_n, held_dir) VALUES (?,?,?,?,?,?)
			ON CONFLICT (id) DO UPDATE SET last_seen = max(last_seen, excluded.last_seen),
			held = excluded.held, held_n = excluded.held_n, held_dir = excluded.held_dir`,
			id, ms, ms, h.Slice[:], int64(h.N), h.SiteDir)
	})
}

const selectMachine = "SELECT id, first_seen, last_seen, sent, received, held, held_n, held_dir FROM machine"

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
	var first, last, sent, received, n int64
	var held []byte
	if err := row.Scan(&m.ID, &first, &last, &sent, &received, &held, &n, &m.Held.SiteDir); err != nil {
		return Machine{}, err
	}
	m.FirstSeen, m.LastSeen = time.UnixMilli(first).UTC(), time.UnixMilli(last).UTC()
	m.Sent, m.Received = uint64(sent), uint64(received)
	m.Held.N = uint64(n)
	copy(m.Held.Slice[:], held)
	return m, nil
}
