package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"time"
)

// Release is one release that verified.
type Release struct {
	N            uint64
	Payload      ID     // digest of the tag's payload
	Tag          []byte // the tag object, raw
	Tree         ID     // SHA-256 id of the fleet's root tree
	TrustVersion uint64
	Origin       string // who brought it: "push", "git"
	Received     time.Time
}

// Object is one Git object by its SHA-256 id.
type Object struct {
	ID   ID
	Kind string // "tree" or "blob"
	Data []byte
}

// ConflictError says that a release cannot follow what is stored.
type ConflictError struct {
	Head Release // what is stored: under the same number, or the head
	Old  bool    // the number is below the head, else it is taken by another digest
}

func (e *ConflictError) Error() string {
	if e.Old {
		return fmt.Sprintf("release is older than the head, release %d", e.Head.N)
	}
	return fmt.Sprintf("release %d is taken by payload %x", e.Head.N, e.Head.Payload)
}

// PutRelease stores the objects and makes r the head, all or nothing. A set
// of objects whose tree names an object that is in neither the set nor the
// store breaks the promise of the package; the caller has walked it. When r is
// stored already (same number, same payload) it answers false and writes nothing;
// when the number is taken or too low it returns a *ConflictError.
func (s *Store) PutRelease(ctx context.Context, r Release, objects iter.Seq2[Object, error]) (added bool, err error) {
	err = s.update(ctx, func(c *sql.Conn) error {
		head, err := scanRelease(c.QueryRowContext(context.Background(), selectRelease+" WHERE n >= ? ORDER BY n LIMIT 1", int64(r.N)))
		switch {
		case errors.Is(err, ErrNotFound):
		case err != nil:
			return err
		case head.N == r.N && head.Payload == r.Payload:
			return nil
		case head.N == r.N:
			return &ConflictError{Head: head}
		default:
			return &ConflictError{Head: head, Old: true}
		}
		added = true
		if err := putObjects(c, objects); err != nil {
			return err
		}
		return exec(c, "INSERT INTO release (n, payload, tag, tree, trust_version, origin, received) VALUES (?,?,?,?,?,?,?)",
			int64(r.N), r.Payload[:], r.Tag, r.Tree[:], int64(r.TrustVersion), r.Origin, r.Received.UnixMilli())
	})
	return added && err == nil, err
}

func putObjects(c *sql.Conn, objects iter.Seq2[Object, error]) error {
	insert, err := c.PrepareContext(context.Background(), "INSERT OR IGNORE INTO object (id, kind, data) VALUES (?,?,?)")
	if err != nil {
		return err
	}
	defer insert.Close()
	for o, err := range objects {
		if err != nil {
			return err
		}
		if o.Data == nil {
			o.Data = []byte{} // the empty blob is a value, not NULL
		}
		if _, err := insert.Exec(o.ID[:], o.Kind, o.Data); err != nil {
			return fmt.Errorf("store object %x: %w", o.ID, err)
		}
	}
	return nil
}

// Object returns one object. It returns ErrNotFound when there is none.
func (s *Store) Object(id ID) (kind string, data []byte, err error) {
	err = s.read.QueryRow("SELECT kind, data FROM object WHERE id = ?", id[:]).Scan(&kind, &data)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil, ErrNotFound
	}
	return kind, data, err
}

// Missing returns those of ids that are not stored, in their order.
func (s *Store) Missing(ctx context.Context, ids []ID) ([]ID, error) {
	q, err := s.read.PrepareContext(ctx, "SELECT 1 FROM object WHERE id = ?")
	if err != nil {
		return nil, err
	}
	defer q.Close()
	var missing []ID
	for _, id := range ids {
		var one int
		switch err := q.QueryRowContext(ctx, id[:]).Scan(&one); {
		case errors.Is(err, sql.ErrNoRows):
			missing = append(missing, id)
		case err != nil:
			return nil, err
		}
	}
	return missing, nil
}

// Head returns the newest release, or ErrNotFound.
func (s *Store) Head(ctx context.Context) (Release, error) {
	return scanRelease(s.read.QueryRowContext(ctx, selectRelease+" ORDER BY n DESC LIMIT 1"))
}

// Release returns release n, or ErrNotFound.
func (s *Store) Release(ctx context.Context, n uint64) (Release, error) {
	return scanRelease(s.read.QueryRowContext(ctx, selectRelease+" WHERE n = ?", int64(n)))
}

// TrustSteps returns, for each version of the trust that is stored, the first release
// with it, by rising version.
func (s *Store) TrustSteps(ctx context.Context) ([]Release, error) {
	rows, err := s.read.QueryContext(ctx, selectRelease+" WHERE n IN (SELECT min(n) FROM release GROUP BY trust_version) ORDER BY trust_version")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []Release
	for rows.Next() {
		r, err := scanRelease(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, rows.Err()
}

const selectRelease = "SELECT n, payload, tag, tree, trust_version, origin, received FROM release"

func scanRelease(row interface{ Scan(...any) error }) (Release, error) {
	var r Release
	var n, trust, received int64
	var payload, tree []byte
	err := row.Scan(&n, &payload, &r.Tag, &tree, &trust, &r.Origin, &received)
	if errors.Is(err, sql.ErrNoRows) {
		return Release{}, ErrNotFound
	}
	if err != nil {
		return Release{}, fmt.Errorf("read a release: %w", err)
	}
	r.N, r.TrustVersion, r.Received = uint64(n), uint64(trust), time.UnixMilli(received).UTC()
	copy(r.Payload[:], payload)
	copy(r.Tree[:], tree)
	return r, nil
}
