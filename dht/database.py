"""SQLite: a database of one's own, and changes to it, whole or not at all."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from protocol.problems import ConfigError


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
    and a power cut loses at most the last moments. Raises ConfigError if it cannot be opened."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=check_same_thread)
    except (sqlite3.Error, OSError) as error:
        raise _cannot_open(path, error) from error
    with closing(db):
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.executescript(schema)
        except sqlite3.Error as error:
            raise _cannot_open(path, error) from error
        yield db


def _cannot_open(path: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{path} cannot be opened: {error}", fix="Check the data directory, or move the file away.")
