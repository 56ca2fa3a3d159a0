-- meta: lineage, incarnation, generation, seq_next, purged_day.
CREATE TABLE meta (
    key TEXT NOT NULL PRIMARY KEY,
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE rounds (
    id INTEGER PRIMARY KEY,
    task TEXT NOT NULL,
    number INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    -- A word of the round's schedule, until it ends as one of these two.
    phase TEXT NOT NULL,
    ended INTEGER NOT NULL GENERATED ALWAYS AS (phase IN ('closed', 'abandoned')) VIRTUAL,
    seconds_remaining REAL NOT NULL,
    base BLOB NOT NULL,
    program BLOB NOT NULL,
    last_seq INTEGER,
    reason TEXT NOT NULL,
    summary TEXT NOT NULL,
    started_at REAL NOT NULL,
    ended_at REAL,
    UNIQUE (task, number, attempt)
) STRICT;

CREATE UNIQUE INDEX rounds_one_open ON rounds (task) WHERE NOT ended;

-- A ticket of an open round has day NULL; a tombstone has the day (since 1970) on which its round ended.
-- 'journalled' is never stored here: a ticket is journalled while its row stands in updates. So a journalled update
-- is one append, and no page of this table (in random order) is written for it.
CREATE TABLE tickets (
    id INTEGER PRIMARY KEY,
    ticket BLOB NOT NULL UNIQUE,
    round INTEGER NOT NULL REFERENCES rounds (id),
    device TEXT NOT NULL,
    instance BLOB NOT NULL,
    -- The parameters that the device was asked to train from.
    base BLOB NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    digest BLOB,
    seq INTEGER,
    day INTEGER
) STRICT;

CREATE INDEX tickets_round ON tickets (round);

CREATE TABLE uploads (
    id INTEGER PRIMARY KEY,
    ticket INTEGER NOT NULL REFERENCES tickets (id),
    digest BLOB NOT NULL,
    total INTEGER NOT NULL,
    UNIQUE (ticket, digest)
) STRICT;

-- Ranges of one upload never overlap; data comes last, so that the ranges are read from the index alone.
CREATE TABLE chunks (
    id INTEGER PRIMARY KEY,
    upload INTEGER NOT NULL REFERENCES uploads (id) ON DELETE CASCADE,
    start INTEGER NOT NULL,
    stop INTEGER NOT NULL,
    data BLOB NOT NULL
) STRICT;

CREATE INDEX chunks_upload ON chunks (upload, start, stop);

-- The journal. No foreign key on ticket: it would need an index here, written for every update.
CREATE TABLE updates (
    seq INTEGER PRIMARY KEY,
    round INTEGER NOT NULL REFERENCES rounds (id),
    ticket INTEGER NOT NULL,
    digest BLOB NOT NULL,
    payload BLOB NOT NULL
) STRICT;

CREATE TABLE blobs (
    id INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    bytes INTEGER NOT NULL
) STRICT;

-- Parts of 64 KiB: a range is read without the rest, and a blob may be larger than one SQLite value.
CREATE TABLE blob_parts (
    id INTEGER PRIMARY KEY,
    blob INTEGER NOT NULL REFERENCES blobs (id) ON DELETE CASCADE,
    part INTEGER NOT NULL,
    data BLOB NOT NULL,
    UNIQUE (blob, part)
) STRICT;

CREATE TABLE checkpoints (
    id INTEGER PRIMARY KEY,
    task TEXT NOT NULL,
    round INTEGER NOT NULL,
    parameters BLOB NOT NULL REFERENCES blobs (digest),
    program BLOB NOT NULL REFERENCES blobs (digest),
    server_state BLOB NOT NULL,
    metrics TEXT NOT NULL,
    made_at REAL NOT NULL,
    UNIQUE (task, round)
) STRICT;

CREATE INDEX checkpoints_parameters ON checkpoints (parameters);
CREATE INDEX checkpoints_program ON checkpoints (program);

-- The model deltas that lead to the newest parameters: one a round, and merged ones of several rounds up to one.
CREATE TABLE model_deltas (
    id INTEGER PRIMARY KEY,
    task TEXT NOT NULL,
    round INTEGER NOT NULL,
    rounds INTEGER NOT NULL,
    base BLOB NOT NULL,
    target BLOB NOT NULL,
    digest BLOB NOT NULL REFERENCES blobs (digest),
    bytes INTEGER NOT NULL,
    UNIQUE (task, round, rounds)
) STRICT;

CREATE INDEX model_deltas_digest ON model_deltas (digest);

-- Vectors that devices get beside the newest parameters, by the name that the algorithm gives them.
CREATE TABLE broadcasts (
    task TEXT NOT NULL,
    name TEXT NOT NULL,
    digest BLOB NOT NULL REFERENCES blobs (digest),
    PRIMARY KEY (task, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX broadcasts_digest ON broadcasts (digest);

CREATE TABLE devices (
    device TEXT NOT NULL PRIMARY KEY,
    instance BLOB NOT NULL,
    instance_before BLOB,
    instance_changes INTEGER NOT NULL DEFAULT 0,
    capabilities TEXT NOT NULL,
    first_seen REAL NOT NULL,
    last_seen REAL NOT NULL,
    counted INTEGER NOT NULL DEFAULT 0,
    refused INTEGER NOT NULL DEFAULT 0,
    declined INTEGER NOT NULL DEFAULT 0,
    late INTEGER NOT NULL DEFAULT 0,
    missing INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE counters (
    reason TEXT NOT NULL PRIMARY KEY,
    count INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE retained (
    topic TEXT NOT NULL PRIMARY KEY
) STRICT, WITHOUT ROWID;
