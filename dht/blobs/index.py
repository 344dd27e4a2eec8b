"""What files cannot tell about the chunk store, in SQLite: manifests, who uses a chunk, where its bytes are or will be,
pins, order of last use. A chunk is named by digest *and* length: a manifest that lies about a length names nothing that
can ever be kept, and stands in nobody's way.

Only SQL lives here; `dht.blobs.store` holds its lock around every call and knows what the answers mean.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from dht.blobs.packs import Place
from dht.database import database_problem, open_problem, sound, transaction
from protocol.manifest import Chunk, Manifest

_SCHEMA = """
CREATE TABLE IF NOT EXISTS blob (
    digest TEXT PRIMARY KEY, manifest BLOB NOT NULL, whole INTEGER NOT NULL, used INTEGER NOT NULL,
    pack INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS uses (
    blob TEXT NOT NULL, chunk TEXT NOT NULL, length INTEGER NOT NULL, PRIMARY KEY (blob, chunk, length)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS uses_of_chunk ON uses (chunk, length);
CREATE TABLE IF NOT EXISTS home (
    pack INTEGER NOT NULL, slot INTEGER NOT NULL, chunk TEXT NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL,
    PRIMARY KEY (pack, slot)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS home_of_chunk ON home (chunk, length);
CREATE TABLE IF NOT EXISTS pin (digest TEXT NOT NULL, why TEXT NOT NULL, PRIMARY KEY (digest, why)) WITHOUT ROWID;
CREATE TEMP TABLE chosen (name TEXT PRIMARY KEY) WITHOUT ROWID;
"""


class Gone(NamedTuple):
    """What a blob leaves behind when it goes: its pack, which chunks of others may still need, and unused places."""

    pack: int
    places: list[Place]


@contextmanager
def opened_index(path: Path) -> Iterator[BlobIndex]:
    """Raises ConfigError if another process has it open, DiskFull."""
    with closing(BlobIndex(path)) as index:
        yield index


def _connected(path: Path) -> sqlite3.Connection:
    def prepare(db: sqlite3.Connection) -> None:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(_SCHEMA)

    try:
        return sound(path, lambda: sqlite3.connect(path, check_same_thread=False, isolation_level=None), prepare)
    except (sqlite3.Error, OSError) as error:
        raise open_problem(error, path) from error


class BlobIndex:
    """Use `opened_index`. Changes belong in a `transaction`, which raises DiskFull and then changes nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open()

    def _open(self) -> None:
        before = self._inode_now()
        self._db = _connected(self._path)
        self._inode = self._inode_now()
        self.is_new = before != self._inode
        """There was no file, or a damaged one: what packs hold is not what this index knows."""

    def _inode_now(self) -> int | None:
        try:
            return self._path.stat().st_ino
        except FileNotFoundError:
            return None

    def close(self) -> None:
        self._db.close()

    @property
    def is_taken_away(self) -> bool:
        """Somebody removed or replaced the file."""
        return self._inode_now() != self._inode

    def begin_anew(self) -> None:
        """An empty file in place of the one that was taken away. Raises what `opened_index` does."""
        self.close()
        self._open()

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[None]:
        """`durable` False: a power cut soon after may undo it, with all that was not durable before, which saves the
        wait for the disk. The next durable one makes it last."""
        try:
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
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

    def insert(self, manifest: Manifest, used: int, pack: int) -> Gone | None:
        """A partial blob. The same manifest stays in its pack; another one is replaced, and what it leaves is returned.

        Chunks that have no home yet get one in the pack, at each of their positions; the slot is the position.
        """
        blob, encoded = manifest.digest, manifest.encode()
        if self.manifest(blob) == manifest:
            self._db.execute("UPDATE blob SET whole = 0, used = ? WHERE digest = ?", (used, blob))
            return None
        gone = self.delete(blob)
        self._db.execute("INSERT INTO blob VALUES (?, ?, 0, ?, ?)", (blob, encoded, used, pack))
        self._db.executemany(
            "INSERT OR IGNORE INTO uses VALUES (?, ?, ?)", ((blob, c.digest, c.length) for c in manifest.chunks)
        )
        self._db.executemany(
            "INSERT INTO home SELECT ?1, ?2, ?3, ?4, ?5"
            " WHERE NOT EXISTS (SELECT 1 FROM home WHERE chunk = ?3 AND length = ?5 AND pack <> ?1)",
            (
                (pack, slot, chunk.digest, offset, chunk.length)
                for slot, (offset, chunk) in enumerate(with_offsets(manifest))
            ),
        )
        return gone

    def delete(self, digest: str) -> Gone | None:
        """None if it was not known."""
        row = self._db.execute("SELECT pack FROM blob WHERE digest = ?", (digest,)).fetchone()
        if row is None:
            return None
        rows = self._db.execute(
            "SELECT home.pack, slot, offset, home.length FROM uses AS mine JOIN home USING (chunk, length)"
            " WHERE mine.blob = ? AND NOT EXISTS (SELECT 1 FROM uses AS other"
            " WHERE other.chunk = mine.chunk AND other.length = mine.length AND other.blob <> mine.blob)",
            (digest,),
        )
        places = [Place(*place) for place in rows]
        self._db.executemany("DELETE FROM home WHERE pack = ? AND slot = ?", ((p.pack, p.slot) for p in places))
        self._db.execute("DELETE FROM uses WHERE blob = ?", (digest,))
        self._db.execute("DELETE FROM blob WHERE digest = ?", (digest,))
        return Gone(row[0], places)

    def is_known(self, digest: str) -> bool:
        return self._db.execute("SELECT 1 FROM blob WHERE digest = ?", (digest,)).fetchone() is not None

    def set_whole(self, digest: str, *, whole: bool) -> bool:
        """False if it is not known."""
        return self._db.execute("UPDATE blob SET whole = ? WHERE digest = ?", (whole, digest)).rowcount > 0

    def set_order(self, used: Mapping[str, int]) -> None:
        self._db.executemany("UPDATE blob SET used = ? WHERE digest = ?", ((u, d) for d, u in used.items()))

    def pack_of(self, digest: str) -> int | None:
        row = self._db.execute("SELECT pack FROM blob WHERE digest = ?", (digest,)).fetchone()
        return None if row is None else int(row[0])

    # --- chunks and packs -----------------------------------------------------------------------------------------

    def places(self, chunk: str) -> list[Place]:
        """All are in one pack, unless somebody lied about the length."""
        rows = self._db.execute("SELECT pack, slot, offset, length FROM home WHERE chunk = ?", (chunk,))
        return [Place(*row) for row in rows]

    def places_of(self, blob: str) -> list[tuple[str, Place]]:
        """(chunk, place) of all that the blob uses, in no order."""
        rows = self._db.execute(
            "SELECT chunk, pack, slot, offset, length FROM uses JOIN home USING (chunk, length) WHERE blob = ?", (blob,)
        )
        return [(chunk, Place(*place)) for chunk, *place in rows]

    def homes(self) -> Iterator[tuple[str, Place]]:
        """(chunk, place) of all chunks of all blobs."""
        for chunk, *place in self._db.execute("SELECT chunk, pack, slot, offset, length FROM home"):
            yield chunk, Place(*place)

    def packs(self) -> dict[int, tuple[int, int]]:
        """Slots in use, and bytes up to the end of the last, by pack."""
        own = {pack: (0, 0) for (pack,) in self._db.execute("SELECT pack FROM blob")}
        rows = self._db.execute("SELECT pack, max(slot) + 1, max(offset + length) FROM home GROUP BY pack")
        return own | {pack: (slots, end) for pack, slots, end in rows}

    def is_pack_used(self, pack: int) -> bool:
        """A blob is in it, or a chunk that some blob uses."""
        query = "SELECT 1 FROM home WHERE pack = ?1 UNION ALL SELECT 1 FROM blob WHERE pack = ?1 LIMIT 1"
        return self._db.execute(query, (pack,)).fetchone() is not None

    def users_of(self, chunk: str) -> list[str]:
        return [blob for (blob,) in self._db.execute("SELECT DISTINCT blob FROM uses WHERE chunk = ?", (chunk,))]

    def partial_without(self, chunks: Iterable[str]) -> None:
        """Blobs that use one of these are partial."""
        self._choose(chunks)
        self._db.execute(
            "UPDATE blob SET whole = 0 WHERE whole"
            " AND digest IN (SELECT blob FROM uses JOIN chosen ON uses.chunk = chosen.name)"
        )

    def bytes_used_by(self, blobs: Iterable[str]) -> int:
        """Chunks that they share with others are counted once."""
        self._choose(blobs)
        return self._number(
            "SELECT sum(length) FROM home JOIN"
            " (SELECT DISTINCT chunk, length FROM uses WHERE blob IN (SELECT name FROM chosen)) USING (chunk, length)"
        )

    def bytes_used(self) -> int:
        """Of all blobs, those included that are still to come."""
        return self._number("SELECT sum(length) FROM home")

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


def with_offsets(manifest: Manifest) -> Iterator[tuple[int, Chunk]]:
    """Each chunk with its offset in the blob."""
    offset = 0
    for chunk in manifest.chunks:
        yield offset, chunk
        offset += chunk.length
