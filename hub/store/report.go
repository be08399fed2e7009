package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// Report is the state of one machine as it last told it, in the hub's own encoding.
type Report struct {
	Machine  string
	Received time.Time
	Body     []byte
}

// PutReport makes r the latest report of its machine and moves the one before into
// the history, which stays within its bounds.
func (s *Store) PutReport(ctx context.Context, r Report) error {
	return s.update(ctx, func(c *sql.Conn) error {
		if err := exec(c, "INSERT INTO history (machine, received, body) SELECT machine, received, body FROM report WHERE machine = ?", r.Machine); err != nil {
			return fmt.Errorf("keep the last report of %s: %w", r.Machine, err)
		}
		if err := exec(c, "INSERT OR REPLACE INTO report (machine, received, body) VALUES (?,?,?)", r.Machine, r.Received.UnixMilli(), r.Body); err != nil {
			return fmt.Errorf("store the report of %s: %w", r.Machine, err)
		}
		if err := exec(c, "DELETE FROM history WHERE machine = ?1 AND id <= (SELECT id FROM history WHERE machine = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)", r.Machine, s.limit.HistoryPerMachine); err != nil {
			return fmt.Errorf("trim the history of %s: %w", r.Machine, err)
		}
		// Ids only rise and the oldest go first, so the span of ids is at
		// least the number of rows: the bound holds without counting them.
		return exec(c, "DELETE FROM history WHERE id <= (SELECT max(id) FROM history) - ?", s.limit.History)
	})
}

// LatestReport returns the latest report of one machine, or ErrNotFound.
func (s *Store) LatestReport(ctx context.Context, machine string) (Report, error) {
	r := Report{Machine: machine}
	var received int64
	err := s.read.QueryRowContext(ctx, "SELECT received, body FROM report WHERE machine = ?", machine).Scan(&received, &r.Body)
	if errors.Is(err, sql.ErrNoRows) {
		return Report{}, ErrNotFound
	}
	r.Received = time.UnixMilli(received).UTC()
	return r, err
}

// LatestReports calls each for the latest report of every machine.
func (s *Store) LatestReports(ctx context.Context, each func(Report) error) error {
	return s.reports(ctx, each, "SELECT machine, received, body FROM report")
}

// History returns the reports of a machine before its latest, newest first.
func (s *Store) History(ctx context.Context, machine string) ([]Report, error) {
	var all []Report
	err := s.reports(ctx, func(r Report) error { all = append(all, r); return nil },
		"SELECT machine, received, body FROM history WHERE machine = ? ORDER BY id DESC", machine)
	return all, err
}

func (s *Store) reports(ctx context.Context, each func(Report) error, query string, args ...any) error {
	rows, err := s.read.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var r Report
		var received int64
		if err := rows.Scan(&r.Machine, &received, &r.Body); err != nil {
			return err
		}
		r.Received = time.UnixMilli(received).UTC()
		if err := each(r); err != nil {
			return err
		}
	}
	return rows.Err()
}
