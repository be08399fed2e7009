// Package store is the hub's memory on disk: releases with their objects,
// the latest report of each machine with a bounded history, and what was seen of
// the machines.
//
// It is one SQLite file in a folder of its own. One goroutine writes; callers
// that wait at the same time share one transaction, so that ten thousand
// machines that report at once cost a few hundred flushes. Readers never wait for
// the writer (WAL). Every write that was acknowledged survives kill -9 and loss
// of power (synchronous=FULL); a write that was not acknowledged is there whole
// or not at all.
//
// It promises that each stored object is whole below: whatever a stored tree names
// is stored too, provided that PutRelease was given a closed set. It judges nothing:
// who may sign what is for the hub to ask.
package store

import (
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	_ "modernc.org/sqlite" // the database/sql driver
)

// ID is a SHA-256: of an object, a payload, a slice.
type ID = [32]byte

// Sentinels that callers branch on.
var (
	// ErrNotFound is returned by readers for what is not there.
	ErrNotFound = errors.New("not in the store")
	// ErrClosed is returned by everything after Close.
	ErrClosed = errors.New("the store is closed")
	// ErrInUse is returned by Open when another process has the folder.
	ErrInUse = errors.New("another hub uses this folder: stop it, or give this one a folder of its own")
)

//go:embed schema/*.sql
var schema embed.FS

// applicationID marks the file as ours ("HFHB").
const applicationID = 0x48464842

// busyWait bounds how long SQLite waits for a lock that only another process could hold.
const busyWait = 2 * time.Second

// Store is safe for concurrent use. Make one with Open.
type Store struct {
	lock  *sql.DB // holds an exclusive lock for as long as we live
	read  *sql.DB
	limit Limits

	ops    chan *op
	stop   chan struct{} // closed by Close
	closed sync.Once
	done   chan struct{} // closed when the writer has ended
}

// Limits bound what grows with time. Zero fields take the defaults.
type Limits struct {
	HistoryPerMachine int // reports kept of one machine, besides the latest (32)
	History           int // reports kept of all machines (200 000)
}

func (l *Limits) fill() {
	if l.HistoryPerMachine == 0 {
		l.HistoryPerMachine = 32
	}
	if l.History == 0 {
		l.History = 200_000
	}
}

// Open opens the store in dir, which it makes if needed, and brings its schema up to date.
func Open(dir string, limits Limits) (*Store, error) {
	limits.fill()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the store's folder: %w", err)
	}
	lock, err := takeLock(filepath.Join(dir, "lock.db"))
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	s := &Store{lock: lock, limit: limits, ops: make(chan *op), stop: make(chan struct{}), done: make(chan struct{})}
	path := filepath.Join(dir, "hub.db")
	w, err := openWriter(path)
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	if s.read, err = openDB(path, "query_only(1)"); err != nil {
		w.Close()
		lock.Close()
		return nil, fmt.Errorf("open %s for reading: %w", path, err)
	}
	s.read.SetMaxOpenConns(8)
	s.read.SetMaxIdleConns(8)
	go s.run(w)
	return s, nil
}

// Close ends the store after the writes that were already taken.
func (s *Store) Close() error {
	s.closed.Do(func() { close(s.stop) })
	<-s.done
	return errors.Join(s.read.Close(), s.lock.Close())
}

func openDB(path string, pragmas ...string) (*sql.DB, error) {
	name := "file:" + strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23").Replace(filepath.ToSlash(path))
	sep := "?"
	for _, p := range append([]string{fmt.Sprintf("busy_timeout(%d)", busyWait.Milliseconds())}, pragmas...) {
		name += sep + "_pragma=" + p
		sep = "&"
	}
	return sql.Open("sqlite", name)
}

// takeLock holds SQLite's exclusive lock on a file beside the store: it is the one
// lock that works alike everywhere and that dies with the process.
func takeLock(path string) (*sql.DB, error) {
	db, err := openDB(path, "locking_mode(EXCLUSIVE)")
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	if _, err := db.Exec("BEGIN EXCLUSIVE"); err != nil {
		db.Close()
		if strings.Contains(err.Error(), "database is locked") {
			return nil, ErrInUse
		}
		return nil, err
	}
	return db, nil
}

func openWriter(path string) (*sql.DB, error) {
	db, err := openDB(path, "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)")
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	if err := migrate(db); err != nil {
		db.Close()
		return nil, err
	}
	return db, nil
}

// migrate applies the numbered files of schema/ that this file has not seen, each
// in a transaction with the new version: a crash leaves one version or the next.
func migrate(db *sql.DB) error {
	files, err := fs.Glob(schema, "schema/*.sql")
	if err != nil {
		return err
	}
	var version, app int
	if err := db.QueryRow("PRAGMA user_version").Scan(&version); err != nil {
		return err
	}
	if err := db.QueryRow("PRAGMA application_id").Scan(&app); err != nil {
		return err
	}
	if version != 0 && app != applicationID {
		return errors.New("this is a database of another program: give the hub a folder of its own")
	}
	if version > len(files) {
		return fmt.Errorf("written by a newer hub (schema %d, this one knows %d): run that one, or an empty folder", version, len(files))
	}
	for i, f := range files[version:] {
		text, err := schema.ReadFile(f)
		if err != nil {
			return err
		}
		step := fmt.Sprintf("BEGIN IMMEDIATE; %s\nPRAGMA application_id = %d; PRAGMA user_version = %d; COMMIT", text, applicationID, version+i+1)
		if _, err := db.Exec(step); err != nil {
			return fmt.Errorf("bring the schema to %s: %w", f, err)
		}
	}
	return nil
}
