"""The simulator's book: one SQLite file, written in short transactions by one process.

WAL with synchronous=NORMAL: what was committed survives a kill -9 of the process at any moment, and a power cut may cost the last
moments but never the file. Everything that is still to happen (deliveries, timers) is a row, so a restart goes on where it stopped.
"""

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

FILE = "book.sqlite3"
SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 10.0  # somebody looks into the file with another program

_SCHEMA = """
CREATE TABLE facts (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE objects (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    type TEXT NOT NULL,
    reference TEXT NOT NULL,
    status TEXT NOT NULL,
    currency TEXT NOT NULL,
    amount INTEGER NOT NULL,
    executions INTEGER NOT NULL,
    updated_on INTEGER NOT NULL,
    kept BLOB NOT NULL
);
CREATE INDEX objects_to_settle ON objects (seq) WHERE type = 'purchase' AND status = 'paid';
CREATE INDEX credits_by_reference ON objects (reference) WHERE type = 'eft_credit';

CREATE TABLE entries (
    seq INTEGER PRIMARY KEY,
    type TEXT NOT NULL,
    id TEXT NOT NULL,
    object_id TEXT NOT NULL,
    related_to TEXT NOT NULL,
    reference TEXT NOT NULL,
    currency TEXT NOT NULL,
    amount INTEGER NOT NULL,
    fee_amount INTEGER NOT NULL,
    net_amount INTEGER NOT NULL,
    created_on INTEGER NOT NULL
);
CREATE INDEX entries_by_time ON entries (created_on, seq);

-- kept with each entry, since a balance is asked for more often than it is worth to add up a million rows
CREATE TABLE sums (
    currency TEXT NOT NULL,
    type TEXT NOT NULL,
    amount INTEGER NOT NULL,
    fee_amount INTEGER NOT NULL,
    entries INTEGER NOT NULL,
    PRIMARY KEY (currency, type)
) WITHOUT ROWID;

-- money on its way: `reserved` for refunds, `pending_outgoing` for payouts
CREATE TABLE pending (
    currency TEXT NOT NULL,
    kind TEXT NOT NULL,
    amount INTEGER NOT NULL,
    PRIMARY KEY (currency, kind)
) WITHOUT ROWID;

CREATE TABLE timers (
    seq INTEGER PRIMARY KEY,
    due_at REAL NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    details TEXT NOT NULL
);
CREATE INDEX timers_by_time ON timers (due_at);

CREATE TABLE webhooks (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    body BLOB NOT NULL,
    private_key TEXT NOT NULL
);

CREATE TABLE callbacks (
    callback_type TEXT PRIMARY KEY,
    client_id TEXT NOT NULL,
    url TEXT NOT NULL,
    version TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE events (
    seq INTEGER PRIMARY KEY,
    object_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    body BLOB NOT NULL
);

-- `is_head`: the first of its object to its receiver that still waits; only heads are sent
CREATE TABLE deliveries (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    event INTEGER NOT NULL REFERENCES events (seq),
    object_id TEXT NOT NULL,
    receiver TEXT NOT NULL,
    url TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting',
    is_head INTEGER NOT NULL,
    due_at REAL NOT NULL,
    first_tried_at REAL,
    attempts INTEGER NOT NULL DEFAULT 0,
    bad_signatures INTEGER NOT NULL DEFAULT 0,
    last_answer TEXT NOT NULL DEFAULT '',
    created_on INTEGER NOT NULL,
    updated_on INTEGER NOT NULL
);
CREATE INDEX deliveries_due ON deliveries (due_at) WHERE state = 'waiting' AND is_head = 1;
CREATE INDEX deliveries_in_order ON deliveries (receiver, object_id, seq) WHERE state = 'waiting';
CREATE INDEX deliveries_done ON deliveries (updated_on) WHERE state <> 'waiting';
CREATE INDEX deliveries_by_event ON deliveries (event);

CREATE TABLE delivery_counts (
    state TEXT PRIMARY KEY,
    deliveries INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO delivery_counts VALUES ('waiting', 0), ('delivered', 0), ('given_up', 0);

CREATE TABLE statements (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    kept BLOB NOT NULL
);
CREATE TABLE statement_parts (
    statement_id TEXT NOT NULL,
    part INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (statement_id, part)
) WITHOUT ROWID;
"""

_LATEST = """
SELECT max(moment) FROM (
    SELECT max(updated_on) AS moment FROM objects UNION ALL SELECT max(created_on) FROM entries
)
"""


class Book:
    """The open file. `writing()` is the only way to change it; what runs inside never awaits."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._connection: sqlite3.Connection | None = None
        self._latest = 0

    def open(self) -> None:
        """Open the file and make its tables when it is new."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # isolation_level: transactions are begun and ended by `writing`, not guessed by the driver
        self._connection = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._make_tables()
        self._latest = self.value(_LATEST) or 0

    def close(self) -> None:
        """Fold the log into the file and let go of it."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction: all of it or nothing."""
        connection = self._open
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # some errors, like a full disk, have ended it already
                connection.execute("ROLLBACK")
            raise

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run one statement."""
        return self._open.execute(sql, parameters)

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """All rows of a query that has a limit."""
        return self._open.execute(sql, parameters).fetchall()

    def row(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Row | None:
        """The first row."""
        found: sqlite3.Row | None = self._open.execute(sql, parameters).fetchone()
        return found

    def value(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        """The first column of the first row, or None."""
        found = self.row(sql, parameters)
        return None if found is None else found[0]

    def fact(self, name: str) -> str | None:
        """A single value that the simulator keeps, like its company id."""
        found: str | None = self.value("SELECT value FROM facts WHERE name = ?", (name,))
        return found

    def keep_fact(self, name: str, value: str) -> None:
        """Remember a single value."""
        self.execute("INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", (name, value))

    def now(self) -> int:
        """Unix seconds that never go back, also when the machine's clock does: `updated_on` is what receivers order by."""
        self._latest = max(self._latest, int(time.time()))
        return self._latest

    @property
    def _open(self) -> sqlite3.Connection:
        assert self._connection is not None, "the book is closed"
        return self._connection

    def _make_tables(self) -> None:
        version = self.value("PRAGMA user_version")
        if version > SCHEMA_VERSION:
            raise ValueError(f"{self._path} was made by a newer simulator (schema {version}, this one knows {SCHEMA_VERSION})")
        if version == 0:
            # executescript commits first what is open, so the transaction is part of the script
            self._open.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")


def new_id() -> str:
    """A random id, as the real API has them; never of the seeded generator, which would repeat them after a restart."""
    return str(uuid4())
