"""What files cannot tell about the chunk store, in SQLite: manifests, who uses a chunk, pins, order of last use.

Only SQL lives here; `dht.blobs` holds its lock around every call and knows what the answers mean.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from dht.database import database_problem, open_problem, transaction
from protocol.manifest import Manifest

_SCHEMA = """
CREATE TABLE IF NOT EXISTS blob (
    digest TEXT PRIMARY KEY, manifest BLOB NOT NULL, whole INTEGER NOT NULL, used INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS uses (
    blob TEXT NOT NULL, chunk TEXT NOT NULL, length INTEGER NOT NULL, PRIMARY KEY (blob, chunk)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS uses_of_chunk ON uses (chunk);
CREATE TABLE IF NOT EXISTS pin (digest TEXT NOT NULL, why TEXT NOT NULL, PRIMARY KEY (digest, why)) WITHOUT ROWID;
CREATE TEMP TABLE chosen (name TEXT PRIMARY KEY) WITHOUT ROWID;
"""


@contextmanager
def opened_index(path: Path) -> Iterator[BlobIndex]:
    """Raises ConfigError if another process has it open, DiskFull."""
    try:
        db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    except sqlite3.Error as error:
        raise open_problem(error, path) from error
    with closing(db):
        try:
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise open_problem(error, path) from error
        yield BlobIndex(path, db)


class BlobIndex:
    """Use `opened_index`. Changes belong in a `transaction`, which raises DiskFull and then changes nothing."""

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self._path = path
        self._db = db

    @contextmanager
    def transaction(self) -> Iterator[None]:
        try:
            with transaction(self._db):
                yield
        except sqlite3.Error as error:
            raise database_problem(error, self._path) from error

    # --- blobs ----------------------------------------------------------------------------------------------------

    def blobs(self) -> list[tuple[str, bool, int]]:
        """(digest, whole, place in the order of last use), the least recently used first."""
        rows = self._db.execute("SELECT digest, whole, used FROM blob ORDER BY used")
        return [(digest, bool(whole), used) for digest, whole, used in rows]

    def manifest(self, digest: str) -> Manifest | None:
        row = self._db.execute("SELECT manifest FROM blob WHERE digest = ?", (digest,)).fetchone()
        return Manifest.decode(row[0], digest=digest) if row else None

    def insert(self, manifest: Manifest, used: int) -> None:
        """A partial blob; replaces what was known of it."""
        blob = manifest.digest
        lengths = {c.digest: c.length for c in manifest.chunks}
        self.delete(blob)
        self._db.execute("INSERT INTO blob VALUES (?, ?, 0, ?)", (blob, manifest.encode(), used))
        self._db.executemany("INSERT INTO uses VALUES (?, ?, ?)", ((blob, c, n) for c, n in lengths.items()))

    def delete(self, digest: str) -> bool:
        """False if it was not known."""
        self._db.execute("DELETE FROM uses WHERE blob = ?", (digest,))
        return self._db.execute("DELETE FROM blob WHERE digest = ?", (digest,)).rowcount > 0

    def is_known(self, digest: str) -> bool:
        return self._db.execute("SELECT 1 FROM blob WHERE digest = ?", (digest,)).fetchone() is not None

    def set_whole(self, digest: str, *, whole: bool) -> bool:
        """False if it is not known."""
        return self._db.execute("UPDATE blob SET whole = ? WHERE digest = ?", (whole, digest)).rowcount > 0

    def set_order(self, used: Mapping[str, int]) -> None:
        self._db.executemany("UPDATE blob SET used = ? WHERE digest = ?", ((u, d) for d, u in used.items()))

    # --- chunks ---------------------------------------------------------------------------------------------------

    def is_used(self, chunk: str) -> bool:
        return self._db.execute("SELECT 1 FROM uses WHERE chunk = ? LIMIT 1", (chunk,)).fetchone() is not None

    def chunks_of(self, blob: str) -> list[str]:
        return [chunk for (chunk,) in self._db.execute("SELECT chunk FROM uses WHERE blob = ?", (blob,))]

    def users_of(self, chunk: str) -> list[str]:
        return [blob for (blob,) in self._db.execute("SELECT blob FROM uses WHERE chunk = ?", (chunk,))]

    def keep_whole_only(self, present: Iterable[str]) -> None:
        """Blobs that use a chunk outside `present` are partial."""
        self._choose(present)
        self._db.execute(
            "UPDATE blob SET whole = 0 WHERE whole AND EXISTS"
            " (SELECT 1 FROM uses WHERE blob = digest AND chunk NOT IN (SELECT name FROM chosen))"
        )

    def bytes_used_by(self, blobs: Iterable[str]) -> int:
        """Each chunk once."""
        self._choose(blobs)
        return self._number(
            "SELECT sum(length) FROM (SELECT max(length) AS length FROM uses"
            " WHERE blob IN (SELECT name FROM chosen) GROUP BY chunk)"
        )

    def bytes_used_only_by(self, blob: str) -> int:
        return self._number(
            "SELECT sum(length) FROM uses AS mine WHERE blob = ? AND NOT EXISTS"
            " (SELECT 1 FROM uses AS other WHERE other.chunk = mine.chunk AND other.blob <> mine.blob)",
            blob,
        )

    # --- pins -----------------------------------------------------------------------------------------------------

    def pin(self, digest: str, why: str) -> None:
        self._db.execute("INSERT OR IGNORE INTO pin VALUES (?, ?)", (digest, why))

    def unpin(self, digest: str, why: str) -> None:
        self._db.execute("DELETE FROM pin WHERE digest = ? AND why = ?", (digest, why))

    def pins(self, digest: str) -> set[str]:
        return {why for (why,) in self._db.execute("SELECT why FROM pin WHERE digest = ?", (digest,))}

    def pinned(self) -> set[str]:
        return {digest for (digest,) in self._db.execute("SELECT DISTINCT digest FROM pin")}

    def _choose(self, names: Iterable[str]) -> None:
        self._db.execute("DELETE FROM chosen")
        self._db.executemany("INSERT OR IGNORE INTO chosen VALUES (?)", ((name,) for name in names))

    def _number(self, query: str, *parameters: str) -> int:
        return int(self._db.execute(query, parameters).fetchone()[0] or 0)
