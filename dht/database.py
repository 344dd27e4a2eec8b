"""SQLite: a database of one's own, and changes to it, whole or not at all.

A damaged file is set aside and begun anew: what is in it can be had again (records and content from the mesh, instances
from their engines), and a machine at the edge should come up with nobody there to help.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import structlog

from dht.disk_errors import CHECK_DISK_FIX, NO_ROOM
from protocol.problems import ConfigError, DiskFull, DiskUnusable, Problem, Unavailable

log = structlog.get_logger(__name__)

_DISK_FAILS = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY})
_DAMAGED = frozenset({sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT})
_LITTLE = 1 << 20
"""With fewer bytes free, an error of the disk is for want of room: SQLite does not always say so."""


class _Unsound(sqlite3.DatabaseError):
    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """One write transaction, from its first statement on. `db` is in autocommit mode (`isolation_level=None`).

    What the block or the commit raises comes out as it is, and nothing is changed. After some errors, a full disk
    among them, SQLite has rolled back by itself.
    """
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


@contextmanager
def opened_database(path: Path, schema: str, *, check_same_thread: bool = True) -> Iterator[sqlite3.Connection]:
    """The database at `path`, made if absent, in autocommit mode: write-ahead log, so that a commit waits for no disk
    and a power cut loses at most the last moments. Raises ConfigError if it cannot be opened, DiskFull."""

    def prepare(db: sqlite3.Connection) -> None:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.executescript(schema)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        db = sound(
            path, lambda: sqlite3.connect(path, isolation_level=None, check_same_thread=check_same_thread), prepare
        )
    except (sqlite3.Error, OSError) as error:
        raise open_problem(error, path) from error
    with closing(db):
        yield db


def sound(
    path: Path, connect: Callable[[], sqlite3.Connection], prepare: Callable[[sqlite3.Connection], None]
) -> sqlite3.Connection:
    """A connection that `prepare` has set up, to a database that is of one piece. A damaged one is set aside first, and
    an empty one made. Raises sqlite3.Error, OSError."""
    try:
        return _prepared(connect, prepare)
    except sqlite3.DatabaseError as error:
        if _code(error) not in _DAMAGED:
            raise
        kept_as = path.with_name(f"{path.name}.damaged")
        path.replace(kept_as)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        log.error("database-damaged", file=str(path), why=str(error), kept_as=kept_as.name, now="begun anew")
        return _prepared(connect, prepare)


def _prepared(
    connect: Callable[[], sqlite3.Connection], prepare: Callable[[sqlite3.Connection], None]
) -> sqlite3.Connection:
    db = connect()
    try:
        prepare(db)
        (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise _Unsound(found)
    except BaseException:
        db.close()
        raise
    return db


def database_problem(error: sqlite3.Error | OSError, path: Path | None) -> Problem:
    """What an error of SQLite, or of the file system below it, means to the owner of the database at `path`.

    DiskFull; DiskUnusable where the file system fails; Unavailable where another process holds a lock, which passes;
    else ConfigError, which does not.
    """
    name = path if path is not None else "the database in memory"
    if _no_room(error) or (_code(error) == sqlite3.SQLITE_IOERR and path is not None and _is_full(path)):
        return DiskFull(f"{name} cannot be written: {error}", fix="Make room on the disk.")
    if _locked(error):
        return Unavailable(f"{name} is in use by another process", fix="Stop that process, or try again.")
    if _code(error) in _DISK_FAILS:
        return DiskUnusable(f"{name} cannot be read or written: {error}", fix=CHECK_DISK_FIX)
    return ConfigError(f"{name} cannot be used: {error}", fix="Check its permissions, or move the file away.")


def open_problem(error: sqlite3.Error | OSError, path: Path) -> Problem:
    """As `database_problem`, at the opening: a database that another process holds then is the wrong one."""
    if _no_room(error) or _code(error) in _DISK_FAILS:
        return database_problem(error, path)
    if _locked(error):
        return ConfigError(
            f"another process uses {path.parent}", fix="Stop it, or give this node its own data directory."
        )
    return ConfigError(f"{path} cannot be opened: {error}", fix="Check the data directory, or move the file away.")


def _no_room(error: sqlite3.Error | OSError) -> bool:
    return _code(error) == sqlite3.SQLITE_FULL or (isinstance(error, OSError) and error.errno in NO_ROOM)


def _is_full(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < _LITTLE
    except OSError:
        return False


def _locked(error: sqlite3.Error | OSError) -> bool:
    return _code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def _code(error: sqlite3.Error | OSError) -> int | None:
    """SQLite's primary result code (https://sqlite.org/rescode.html), without the bits of the extended one."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else int(code) & 0xFF
