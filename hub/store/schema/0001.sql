-- Objects of releases, content-addressed. Whatever stands here is whole below:
-- an object is written only together with, or after, everything that it names.
CREATE TABLE object (
	id   BLOB PRIMARY KEY CHECK (length(id) = 32),
	kind TEXT NOT NULL CHECK (kind IN ('tree', 'blob')),
	data BLOB NOT NULL
) WITHOUT ROWID;

-- Releases that verified. The head is the row with the highest n.
CREATE TABLE release (
	n             INTEGER PRIMARY KEY,
	payload       BLOB NOT NULL CHECK (length(payload) = 32),
	tag           BLOB NOT NULL,
	tree          BLOB NOT NULL CHECK (length(tree) = 32),
	trust_version INTEGER NOT NULL,
	origin        TEXT NOT NULL,
	received      INTEGER NOT NULL
);

-- Machines that a site lists (or buries): what was seen of them.
CREATE TABLE machine (
	id          TEXT PRIMARY KEY,
	first_seen  INTEGER NOT NULL,
	last_seen   INTEGER NOT NULL,
	sent        INTEGER NOT NULL DEFAULT 0,
	received    INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

-- The latest report of each machine.
CREATE TABLE report (
	machine  TEXT PRIMARY KEY,
	received INTEGER NOT NULL,
	body     BLOB NOT NULL
) WITHOUT ROWID;

-- Reports gone by, bounded per machine and in all.
CREATE TABLE history (
	id       INTEGER PRIMARY KEY,
	machine  TEXT NOT NULL,
	received INTEGER NOT NULL,
	body     BLOB NOT NULL
);
CREATE INDEX history_machine ON history (machine, id);
