"""Records and routing contacts on disk: two tables of `state.sqlite`.

What the rules compare stands in columns and indexes of its own, so that a decision reads a row or two and never an
envelope. How many rows there are, and whose, is counted as they come and go.

Every call is one short transaction in the caller's thread, or a part of one (`transaction`). That is on purpose: in WAL
mode with `synchronous=NORMAL` a commit waits for no disk (it costs some 50 us, less than the trip to another thread),
and a power cut loses at most the last moments, which the mesh still knows. The one slow step, folding the log back into
the database, is left to `checkpoint`, which the owner calls in a thread.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from dht.database import database_problem, sound, transaction
from dht.seats import OWN, Occupancy
from protocol.problems import ConfigError

_COLUMNS = ", ".join(("key", "slot", "owner", "via", "seq", "withdrawn", "expiry", "ours", "spread_at", "envelope"))
_SCHEMA = """
CREATE TABLE IF NOT EXISTS dht_held (
    key BLOB NOT NULL,          -- 20 bytes
    slot BLOB NOT NULL,         -- rules.slot
    owner BLOB NOT NULL,        -- public key that signed
    via BLOB NOT NULL,          -- node id of the member that brought it first, or a constant of dht.seats
    seq INTEGER NOT NULL,
    withdrawn INTEGER NOT NULL,
    expiry INTEGER NOT NULL,    -- Unix s
    ours INTEGER NOT NULL,      -- 1: published here, republished until it expires
    spread_at REAL NOT NULL,    -- Unix s of the last time that this node spread or was sent it
    envelope BLOB NOT NULL,
    PRIMARY KEY (key, slot)     -- beside a row number: rows are long, and the indexes refer to them
);
CREATE INDEX IF NOT EXISTS dht_held_expiry ON dht_held (expiry);
CREATE INDEX IF NOT EXISTS dht_held_spread ON dht_held (ours, spread_at);
CREATE INDEX IF NOT EXISTS dht_held_rank ON dht_held (key, owner, seq, withdrawn);
CREATE INDEX IF NOT EXISTS dht_held_via ON dht_held (via, expiry);
CREATE TABLE IF NOT EXISTS dht_contacts (
    node BLOB PRIMARY KEY,      -- 20 bytes
    host TEXT NOT NULL,
    port INTEGER NOT NULL,
    seen_at REAL NOT NULL       -- Unix s of its last answer
) WITHOUT ROWID;
"""
BUSY_TIMEOUT_S = 2.0
COUNTED_KEYS = 1024
"""Keys whose rows are kept counted in memory; those of another are counted anew when it is needed."""
PURGED_AT_ONCE = 256
MAX_LOG_BYTES = 8 << 20
"""A log that is longer is folded into the database before its time."""


class Row(NamedTuple):
    """A record as it is kept. `key` 20 bytes; `expiry` and `spread_at` in Unix s."""

    key: bytes
    slot: bytes
    owner: bytes
    via: bytes
    seq: int
    withdrawn: bool
    expiry: int
    ours: bool
    spread_at: float
    envelope: bytes

    @property
    def rank(self) -> tuple[int, bool, bytes]:
        """As `rules.rank`."""
        return self.seq, self.withdrawn, self.envelope


class KnownContact(NamedTuple):
    node: bytes
    host: str
    port: int
    seen_at: float


class Storage:
    """Open with `opened_storage`. Raises ConfigError if the file is damaged by now, DiskFull, Unavailable if locked."""

    def __init__(self, connection: sqlite3.Connection, database: Path | None) -> None:
        self._db = connection
        self._database = database
        self.writes = 0
        """Grows with every change that can make a row due."""
        self._under_way = False
        self._noted: list[tuple[bytes, bytes, bytes, int]] = []
        """What was counted in the transaction under way."""
        self._occupancies: OrderedDict[bytes, Occupancy] = OrderedDict()
        self._whole = self._counted("SELECT owner, via, COUNT(*) FROM dht_held GROUP BY owner, via")

    @property
    def on_disk(self) -> bool:
        return self._database is not None

    # --- records ---

    def at(self, key: bytes) -> list[Row]:
        return self._rows("WHERE key = ?", key)

    def envelopes_at(self, key: bytes, now: float) -> list[tuple[bytes, int]]:
        """The unexpired envelopes at a key, and when each expires: less work than whole rows."""
        with translated(self._database):
            query = "SELECT envelope, expiry FROM dht_held WHERE key = ? AND expiry > ?"
            return self._db.execute(query, (key, now)).fetchall()

    def in_slot(self, key: bytes, slot: bytes) -> Row | None:
        return next(iter(self._rows("WHERE key = ? AND slot = ?", key, slot)), None)

    @property
    def whole(self) -> Occupancy:
        """The rows of all keys together."""
        return self._whole

    def occupancy(self, key: bytes) -> Occupancy:
        """The rows at one key."""
        there = self._occupancies.get(key)
        if there is None:
            query = "SELECT owner, via, COUNT(*) FROM dht_held WHERE key = ? GROUP BY owner, via"
            there = self._occupancies[key] = self._counted(query, key)
            if len(self._occupancies) > COUNTED_KEYS:
                self._occupancies.popitem(last=False)
        self._occupancies.move_to_end(key)
        return there

    def lowest(self, key: bytes, owner: bytes, via: bytes | None) -> Row | None:
        """The lowest ranked row that one key signed, among those that `via` brought (None: anybody)."""
        rows = self._rows(
            "WHERE key = ? AND owner = ? AND (via = ? OR ? IS NULL) ORDER BY seq, withdrawn, envelope LIMIT 1",
            *(key, owner, via, via),
        )
        return rows[0] if rows else None

    def longest_lived(self, via: bytes) -> Row | None:
        """Of all that one member brought, what would stay longest."""
        rows = self._rows("WHERE via = ? ORDER BY expiry DESC LIMIT 1", via)
        return rows[0] if rows else None

    def highest_seq(self, key: bytes, owner: bytes) -> int | None:
        """The highest seq that one key signed at `key`."""
        with translated(self._database):
            query = "SELECT MAX(seq) FROM dht_held WHERE key = ? AND owner = ?"
            (seq,) = self._db.execute(query, (key, owner)).fetchone()
            return None if seq is None else int(seq)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes in the block are kept; if it raises, none is. Locks nothing before the first of them."""
        if self._under_way:
            yield
            return
        self._under_way = True
        try:
            with translated(self._database):
                yield
                if self._db.in_transaction:
                    self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # after some errors, a full disk among them, SQLite has rolled back by itself
                self._db.execute("ROLLBACK")
            for key, owner, via, count in reversed(self._noted):
                self._count(key, owner, via, -count)
            raise
        finally:
            self._under_way = False
            self._noted.clear()

    def put(self, rows: Iterable[Row], *, gone: Iterable[Row] = ()) -> None:
        """Insert. `gone` goes first: what is in the same slots of the same keys, and what else has to make room."""
        self.writes += 1
        with self._changing():
            for row in gone:
                self._delete(row.key, row.slot, row.owner, row.via)
            for row in rows:
                self._db.execute("INSERT INTO dht_held VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
                self._note(row.key, row.owner, row.via, 1)

    def purge(self, now: float) -> int:
        """Delete what expired, at most PURGED_AT_ONCE rows; returns how many went."""
        query = "SELECT key, slot, owner, via FROM dht_held WHERE expiry <= ? LIMIT ?"
        with self._changing():
            gone = self._db.execute(query, (now, PURGED_AT_ONCE)).fetchall()
            for row in gone:
                self._delete(*row)
        return len(gone)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """In the transaction under way, or in one of its own."""
        with self.transaction():
            if not self._db.in_transaction:
                self._db.execute("BEGIN IMMEDIATE")
            yield

    def _delete(self, key: bytes, slot: bytes, owner: bytes, via: bytes) -> None:
        self._db.execute("DELETE FROM dht_held WHERE key = ? AND slot = ?", (key, slot))
        self._note(key, owner, via, -1)

    def _note(self, key: bytes, owner: bytes, via: bytes, count: int) -> None:
        self._noted.append((key, owner, via, count))
        self._count(key, owner, via, count)

    def _count(self, key: bytes, owner: bytes, via: bytes, count: int) -> None:
        self._whole.add(owner, via, count)
        if key in self._occupancies:
            self._occupancies[key].add(owner, via, count)

    def due(self, *, ours: bool, spread_before: float, limit: int) -> list[Row]:
        """Rows last spread before that time, the longest waiting first."""
        return self._rows(
            "WHERE ours = ? AND spread_at <= ? ORDER BY spread_at LIMIT ?", int(ours), spread_before, limit
        )

    def oldest_spread(self, *, ours: bool, after: float) -> float | None:
        """When that row was last spread which has waited longest of those spread after that time."""
        with translated(self._database):
            query = "SELECT MIN(spread_at) FROM dht_held WHERE ours = ? AND spread_at > ?"
            (when,) = self._db.execute(query, (int(ours), after)).fetchone()
            return None if when is None else float(when)

    def mark_spread(self, rows: Iterable[Row], when: float) -> None:
        """Note when rows were spread, unless they were replaced meanwhile."""
        self.writes += 1
        with self._changing():
            self._db.executemany(
                "UPDATE dht_held SET spread_at = ? WHERE key = ? AND slot = ? AND envelope = ?",
                [(when, row.key, row.slot, row.envelope) for row in rows],
            )

    def mark_held_spread(self, key: bytes, when: float) -> None:
        """Note when all that is held for others at `key` was spread."""
        self.writes += 1
        with translated(self._database):
            self._db.execute("UPDATE dht_held SET spread_at = ? WHERE key = ? AND ours = 0", (when, key))

    def make_ours_due(self) -> None:
        """As if nothing that is ours had ever been spread."""
        self.writes += 1
        with translated(self._database):
            self._db.execute("UPDATE dht_held SET spread_at = 0 WHERE ours = 1")

    def keys(self) -> list[bytes]:
        with translated(self._database):
            return [key for (key,) in self._db.execute("SELECT DISTINCT key FROM dht_held")]

    def some_of_each_via(self, key: bytes, count: int) -> list[Row]:
        """Of the rows at `key`: those published here, and `count` that each member brought, always the same."""
        return self._rows(
            "JOIN (SELECT key AS k, slot AS s, ROW_NUMBER() OVER (PARTITION BY via ORDER BY slot) AS nth "
            "FROM dht_held WHERE key = ?) ON key = k AND slot = s WHERE via = ? OR nth <= ?",
            *(key, OWN, count),
        )

    # --- contacts ---

    def remember(self, contacts: Iterable[KnownContact]) -> None:
        with translated(self._database), transaction(self._db):
            self._db.executemany("INSERT OR REPLACE INTO dht_contacts VALUES (?, ?, ?, ?)", contacts)

    def known_contacts(self, *, limit: int) -> list[KnownContact]:
        """The most recently seen first."""
        with translated(self._database):
            found = self._db.execute("SELECT * FROM dht_contacts ORDER BY seen_at DESC LIMIT ?", (limit,))
            return [KnownContact(*row) for row in found]

    def nothing_spread_after(self, now: float) -> None:
        """After the clock was set back: own records noted as spread later than now are due, others count as spread now.
        They would wait for that time otherwise."""
        with translated(self._database):
            self._db.execute("UPDATE dht_held SET spread_at = 0 WHERE ours = 1 AND spread_at > ?", (now,))
            self._db.execute("UPDATE dht_held SET spread_at = ? WHERE ours = 0 AND spread_at > ?", (now, now))
            self.writes += 1

    def forget_contacts(self, seen_before: float) -> None:
        with translated(self._database):
            self._db.execute("DELETE FROM dht_contacts WHERE seen_at < ?", (seen_before,))

    def checkpoint(self) -> None:
        """Fold the log into the database, on a connection of its own. Waits for the disk: call it in a thread."""
        if self._database is None:
            return
        with translated(self._database), closing(connected(self._database)) as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    @property
    def log_is_long(self) -> bool:
        """True if the write-ahead log should be folded in now."""
        if self._database is None:
            return False
        log = Path(f"{self._database}-wal")
        return log.exists() and log.stat().st_size > MAX_LOG_BYTES

    def _rows(self, where: str, *values: bytes | float | None) -> list[Row]:
        with translated(self._database):
            found = self._db.execute(f"SELECT {_COLUMNS} FROM dht_held {where}", values)  # noqa: S608 (a constant clause)
            return [Row(*row)._replace(withdrawn=bool(row[5]), ours=bool(row[7])) for row in found]

    def _counted(self, query: str, *values: bytes) -> Occupancy:
        with translated(self._database):
            return Occupancy(self._db.execute(query, values))


@contextmanager
def opened_storage(database: Path | None) -> Iterator[Storage]:
    """The storage in the file `database` (made if absent), or in memory for None."""
    with translated(database), closing(_opened(database)) as connection:
        yield Storage(connection, database)


def _opened(database: Path | None) -> sqlite3.Connection:
    """A damaged file is set aside: the mesh still holds the records."""
    if database is not None:
        return sound(database, lambda: connected(database), _prepare)
    connection = connected(None)
    _prepare(connection)
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL").fetchall()
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute(f"PRAGMA journal_size_limit = {MAX_LOG_BYTES}").fetchall()
    connection.executescript(_SCHEMA)


def connected(database: Path | None) -> sqlite3.Connection:
    """A connection in autocommit mode."""
    return sqlite3.connect(":memory:" if database is None else database, timeout=BUSY_TIMEOUT_S, isolation_level=None)


@contextmanager
def translated(database: Path | None) -> Iterator[None]:
    """Turns the errors of SQLite into Problems."""
    try:
        yield
    except sqlite3.Error as error:
        problem = database_problem(error, database)
        if isinstance(problem, ConfigError):
            problem.fix = (
                "Start the node again, which sets a damaged file aside: the mesh still holds the records, only what "
                "was published while nobody else was in reach must be published anew."
            )
        raise problem from error
