-- What devices hold and train from, of the newest checkpoint of a task; NULL: the checkpoint's own parameters.
ALTER TABLE checkpoints ADD COLUMN published BLOB REFERENCES blobs (digest);

CREATE INDEX checkpoints_published ON checkpoints (published);

-- The chain of links that leads to the newest published parameters, one a round.
CREATE TABLE links (
    id INTEGER PRIMARY KEY,
    task TEXT NOT NULL,
    round INTEGER NOT NULL,
    base BLOB NOT NULL,
    target BLOB NOT NULL,
    digest BLOB NOT NULL REFERENCES blobs (digest),
    bytes INTEGER NOT NULL,
    UNIQUE (task, round)
) STRICT;

CREATE INDEX links_digest ON links (digest);

-- Parameters of checkpoints that were dropped had been left behind.
DELETE FROM blobs WHERE digest IN (
    SELECT digest FROM blobs EXCEPT SELECT parameters FROM checkpoints EXCEPT SELECT program FROM checkpoints
    EXCEPT SELECT base FROM rounds WHERE phase NOT IN ('closed', 'abandoned')
    EXCEPT SELECT program FROM rounds WHERE phase NOT IN ('closed', 'abandoned')
);
