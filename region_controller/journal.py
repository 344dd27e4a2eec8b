"""What the controller must still know after a restart: instances, leases and how instances ended, in one sqlite file.

Writes are queued and flushed together in a thread, so that a warm answer never waits for the disk; a cold one waits
for its flush. Tokens are stored as their SHA-256 only.

    instances(instance PRIMARY KEY, held)                 held: msgpack of leases.Held
    leases(instance, token_sha256 PRIMARY KEY, deadline)  deadline: Unix s, NULL until stopped
    endings(instance PRIMARY KEY, ending)                 ending: msgpack of endings.Ending
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import structlog

from dht.database import database_problem, opened_database, transaction
from region_controller.endings import Ending
from region_controller.leases import Held, LeaseRow

log = structlog.get_logger(__name__)

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS instances (instance TEXT PRIMARY KEY, held BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leases (
    token_sha256 TEXT PRIMARY KEY, instance TEXT NOT NULL, deadline REAL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS leases_of ON leases (instance);
CREATE TABLE IF NOT EXISTS endings (instance TEXT PRIMARY KEY, ending BLOB NOT NULL) WITHOUT ROWID;
"""


class Journal:
    """Use `open_journal`. All methods but `flush` and `load` only queue."""

    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        self._database = database
        self._path = path
        self._queue: list[tuple[str, tuple[Any, ...]]] = []
        # One thread: writes stay in order, and sqlite is never used by two at once.
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
        self.wanted = asyncio.Event()

    def save_instance(self, held: Held) -> None:
        self._put("INSERT OR REPLACE INTO instances VALUES (?, ?)", held.instance, msgspec.msgpack.encode(held))

    def save_lease(self, lease: LeaseRow) -> None:
        self._put("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", lease.token_sha256, lease.instance, lease.deadline)

    def end_lease(self, lease: LeaseRow) -> None:
        self._put("DELETE FROM leases WHERE token_sha256 = ?", lease.token_sha256)

    def forget(self, instance: str) -> None:
        self._put("DELETE FROM instances WHERE instance = ?", instance)
        self._put("DELETE FROM leases WHERE instance = ?", instance)

    def save_ending(self, ending: Ending) -> None:
        self._put("INSERT OR REPLACE INTO endings VALUES (?, ?)", ending.view.instance, msgspec.msgpack.encode(ending))

    def forget_ending(self, instance: str) -> None:
        self._put("DELETE FROM endings WHERE instance = ?", instance)

    def load(self) -> tuple[list[Held], list[LeaseRow], list[Ending]]:
        """Everything known when the controller stopped. A row that cannot be read is left out and logged.

        Raises ConfigError for a damaged file, Unavailable while another process holds it.
        """
        try:
            instances = self._database.execute("SELECT instance, held FROM instances").fetchall()
            rows = self._database.execute("SELECT instance, token_sha256, deadline FROM leases").fetchall()
            ended = self._database.execute("SELECT instance, ending FROM endings").fetchall()
        except sqlite3.Error as error:
            raise database_problem(error, self._path) from error
        held = _readable(instances, Held)
        known = {h.instance for h in held}
        return held, [LeaseRow(*row) for row in rows if row[0] in known], _readable(ended, Ending)

    async def flush(self) -> None:
        """Make everything queued durable. A disk that fails is logged; what was queued is tried again next time.

        Cancelling the caller does not stop a write under way.
        """
        self.wanted.clear()
        batch, self._queue = self._queue, []
        if batch:
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._writer, self._write, batch))

    def close(self) -> None:
        """Wait for writes under way. Only then may the database be closed."""
        self._writer.shutdown(wait=True)

    def _put(self, statement: str, *values: Any) -> None:
        self._queue.append((statement, values))
        self.wanted.set()

    def _write(self, batch: list[tuple[str, tuple[Any, ...]]]) -> None:
        try:
            with transaction(self._database):
                for statement, values in batch:
                    self._database.execute(statement, values)
        except sqlite3.Error as error:
            self._queue[:0] = batch
            log.error("journal-write-failed", rows=len(batch), problem=database_problem(error, self._path).detail)


def _readable(rows: Iterable[tuple[str, bytes]], kind: type[T]) -> list[T]:
    read = []
    for instance, blob in rows:
        try:
            read.append(msgspec.msgpack.decode(blob, type=kind))
        except msgspec.MsgspecError as error:
            log.warning("journal-row-unreadable", instance=instance, error=str(error))
    return read


@asynccontextmanager
async def open_journal(path: Path) -> AsyncIterator[Journal]:
    """The journal at `path`, made if absent; flushed and closed on exit. Raises ConfigError if it cannot be opened."""
    with opened_database(path, _SCHEMA, check_same_thread=False) as database:
        journal = Journal(database, path)
        try:
            yield journal
        finally:
            try:
                await journal.flush()
            finally:
                journal.close()
