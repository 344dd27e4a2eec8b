"""Records and routing contacts on disk: two tables of `state.sqlite`.

Every call is one short transaction in the caller's thread. That is on purpose: in WAL mode with `synchronous=NORMAL`
a commit waits for no disk (it costs some 50 us, less than the trip to another thread), and a power cut loses at most
the last moments, which the mesh still knows. The one slow step, folding the log back into the database, is left to
`checkpoint`, which the owner calls in a thread.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from dht.database import database_problem, transaction
from protocol.problems import ConfigError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS dht_records (
    key BLOB NOT NULL,          -- 20 bytes
    slot BLOB NOT NULL,         -- rules.slot
    owner BLOB NOT NULL,        -- public key that signed
    expiry INTEGER NOT NULL,    -- Unix s
    ours INTEGER NOT NULL,      -- 1: published here, republished until it expires
    spread_at REAL NOT NULL,    -- Unix s of the last time that this node spread or was sent it
    envelope BLOB NOT NULL,
    PRIMARY KEY (key, slot)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS dht_records_expiry ON dht_records (expiry);
CREATE INDEX IF NOT EXISTS dht_records_spread ON dht_records (ours, spread_at);
CREATE TABLE IF NOT EXISTS dht_contacts (
    node BLOB PRIMARY KEY,      -- 20 bytes
    host TEXT NOT NULL,
    port INTEGER NOT NULL,
    seen_at REAL NOT NULL       -- Unix s of its last answer
) WITHOUT ROWID;
"""
BUSY_TIMEOUT_S = 2.0


class Row(NamedTuple):
    """A record as it is kept. `key` 20 bytes; `expiry` and `spread_at` in Unix s."""

    key: bytes
    slot: bytes
    owner: bytes
    expiry: int
    ours: bool
    spread_at: float
    envelope: bytes


class KnownContact(NamedTuple):
    node: bytes
    host: str
    port: int
    seen_at: float


class Storage:
    """Open with `opened_storage`. Raises ConfigError for a damaged file, DiskFull, Unavailable while it is locked."""

    def __init__(self, connection: sqlite3.Connection, database: Path | None) -> None:
        self._db = connection
        self._database = database
        self._per_owner: Counter[bytes] = Counter()
        self._count_owners()

    @property
    def on_disk(self) -> bool:
        return self._database is not None

    # --- records ---

    def at(self, key: bytes) -> list[Row]:
        return self._rows("WHERE key = ?", key)

    def in_slot(self, key: bytes, slot: bytes) -> Row | None:
        return next(iter(self._rows("WHERE key = ? AND slot = ?", key, slot)), None)

    def owners_at(self, key: bytes) -> dict[bytes, int]:
        """How many rows at `key` each key signed."""
        with _translated(self._database):
            return dict(
                self._db.execute("SELECT owner, COUNT(*) FROM dht_records WHERE key = ? GROUP BY owner", (key,))
            )

    def put(self, rows: Iterable[Row]) -> None:
        """Insert, or replace what is in the same slot of the same key."""
        rows = list(rows)
        with _translated(self._database), transaction(self._db):
            self._db.executemany("INSERT OR REPLACE INTO dht_records VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        self._per_owner.update(row.owner for row in rows)

    def drop(self, key: bytes, slots: Collection[bytes]) -> None:
        if not slots:
            return
        with _translated(self._database), transaction(self._db):
            self._db.executemany("DELETE FROM dht_records WHERE key = ? AND slot = ?", [(key, s) for s in slots])

    def owned_by(self, owner: bytes) -> int:
        """An upper bound of the rows that one signing key occupies; exact after each `purge`."""
        return self._per_owner[owner]

    def rows(self) -> int:
        """An upper bound of the number of rows, without asking the database."""
        return self._per_owner.total()

    def purge(self, now: float) -> int:
        """Delete what expired; returns how many rows went."""
        with _translated(self._database):
            gone = self._db.execute("DELETE FROM dht_records WHERE expiry <= ?", (now,)).rowcount
        self._count_owners()
        return gone

    def due(self, *, ours: bool, spread_before: float, limit: int) -> list[Row]:
        """Rows last spread before that time, the longest waiting first."""
        return self._rows(
            "WHERE ours = ? AND spread_at <= ? ORDER BY spread_at LIMIT ?", int(ours), spread_before, limit
        )

    def mark_spread(self, rows: Iterable[Row], when: float) -> None:
        """Note when rows were spread, unless they were replaced meanwhile."""
        with _translated(self._database), transaction(self._db):
            self._db.executemany(
                "UPDATE dht_records SET spread_at = ? WHERE key = ? AND slot = ? AND envelope = ?",
                [(when, row.key, row.slot, row.envelope) for row in rows],
            )

    def mark_held_spread(self, key: bytes, when: float) -> None:
        """Note when all that is held for others at `key` was spread."""
        with _translated(self._database):
            self._db.execute("UPDATE dht_records SET spread_at = ? WHERE key = ? AND ours = 0", (when, key))

    def make_ours_due(self) -> None:
        """As if nothing that is ours had ever been spread."""
        with _translated(self._database):
            self._db.execute("UPDATE dht_records SET spread_at = 0 WHERE ours = 1")

    def keys(self) -> list[bytes]:
        with _translated(self._database):
            return [key for (key,) in self._db.execute("SELECT DISTINCT key FROM dht_records")]

    def count(self) -> int:
        with _translated(self._database):
            return int(self._db.execute("SELECT COUNT(*) FROM dht_records").fetchone()[0])

    # --- contacts ---

    def remember(self, contacts: Iterable[KnownContact]) -> None:
        with _translated(self._database), transaction(self._db):
            self._db.executemany("INSERT OR REPLACE INTO dht_contacts VALUES (?, ?, ?, ?)", contacts)

    def known_contacts(self, *, limit: int) -> list[KnownContact]:
        """The most recently seen first."""
        with _translated(self._database):
            found = self._db.execute("SELECT * FROM dht_contacts ORDER BY seen_at DESC LIMIT ?", (limit,))
            return [KnownContact(*row) for row in found]

    def forget_contacts(self, seen_before: float) -> None:
        with _translated(self._database):
            self._db.execute("DELETE FROM dht_contacts WHERE seen_at < ?", (seen_before,))

    def checkpoint(self) -> None:
        """Fold the log into the database, on a connection of its own. Waits for the disk: call it in a thread."""
        if self._database is None:
            return
        with _translated(self._database), closing(_connect(self._database)) as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _rows(self, where: str, *values: bytes | float) -> list[Row]:
        with _translated(self._database):
            found = self._db.execute(f"SELECT * FROM dht_records {where}", values)  # noqa: S608 (a constant clause)
            return [Row(k, s, o, e, bool(ours), at, env) for k, s, o, e, ours, at, env in found]

    def _count_owners(self) -> None:
        with _translated(self._database):
            counts = self._db.execute("SELECT owner, COUNT(*) FROM dht_records GROUP BY owner")
            self._per_owner = Counter(dict(counts.fetchall()))


@contextmanager
def opened_storage(database: Path | None) -> Iterator[Storage]:
    """The storage in the file `database` (made if absent), or in memory for None."""
    with _translated(database), closing(_connect(database)) as connection:
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.executescript(_SCHEMA)
        yield Storage(connection, database)


def _connect(database: Path | None) -> sqlite3.Connection:
    return sqlite3.connect(":memory:" if database is None else database, timeout=BUSY_TIMEOUT_S, isolation_level=None)


@contextmanager
def _translated(database: Path | None) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        problem = database_problem(error, database)
        if isinstance(problem, ConfigError):
            problem.fix = (
                "Move the file away and start again: the mesh still holds the records, only what was published "
                "while nobody else was in reach must be published anew."
            )
        raise problem from error
