"""What an agent must still know after `kill -9`: its instances with their absolute deadlines and ports.

One SQLite file, write-ahead log. Every write is one small transaction and takes well under a millisecond, so it is
done in line: a state that was reported is a state that is written.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import structlog
from msgspec import Struct, structs

from agent.lifecycle import Instance
from agent.runtime import Workload
from dht.database import database_problem, opened_database
from protocol.instances import PortBinding
from protocol.service import ServiceDescriptor

log = structlog.get_logger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS instances (instance TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS descriptors (digest TEXT PRIMARY KEY, descriptor BLOB NOT NULL) WITHOUT ROWID;
"""


class Entry(Struct, frozen=True, kw_only=True):
    """One instance as the agent knows it. `mem` in MB; `workload` is None until the image is ready. `variant`: of the
    service, as it was asked for: an image that somebody deletes is made again."""

    instance: Instance
    digest: str
    runtime: str = ""
    service_id: str = ""
    service_name: str = ""
    mem: int = 0
    variant: str | None = None
    ports: tuple[PortBinding, ...] = ()
    workload: Workload | None = None

    def replace(self, **changes: object) -> Entry:
        return structs.replace(self, **changes)


class Journal:
    """Use `open_journal`. Every method raises DiskFull, Unavailable (another process holds the file), ConfigError."""

    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        self._database = database
        self._path = path

    def entries(self) -> list[Entry]:
        """Everything kept. An entry that cannot be read (of another version) is dropped, and its container with it."""
        found = []
        for instance, blob in self._run("SELECT instance, record FROM instances"):
            try:
                found.append(msgspec.msgpack.decode(blob, type=Entry))
            except msgspec.MsgspecError as error:
                log.warning("journal-entry-dropped", instance=instance, error=str(error))
                self.forget(instance)
        return found

    def keep(self, entry: Entry) -> None:
        self._run(
            "INSERT OR REPLACE INTO instances VALUES (?, ?)", entry.instance.instance, msgspec.msgpack.encode(entry)
        )

    def forget(self, instance: str) -> None:
        self._run("DELETE FROM instances WHERE instance = ?", instance)

    def descriptor(self, digest: str) -> ServiceDescriptor | None:
        """The description of an archive that was read before: a built service needs its archive no more."""
        rows = self._run("SELECT descriptor FROM descriptors WHERE digest = ?", digest)
        if not rows:
            return None
        try:
            return msgspec.msgpack.decode(rows[0][0], type=ServiceDescriptor)
        except msgspec.MsgspecError:
            return None  # written by another version: the archive is read again

    def described(self) -> list[str]:
        """Digests whose description is kept."""
        return [digest for (digest,) in self._run("SELECT digest FROM descriptors")]

    def keep_descriptor(self, digest: str, descriptor: ServiceDescriptor) -> None:
        self._run("INSERT OR REPLACE INTO descriptors VALUES (?, ?)", digest, msgspec.msgpack.encode(descriptor))

    def _run(self, statement: str, *values: str | bytes) -> list[tuple[Any, ...]]:
        try:
            return self._database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise database_problem(error, self._path) from error


@contextmanager
def open_journal(path: Path) -> Iterator[Journal]:
    """Raises ConfigError if the file cannot be opened."""
    with opened_database(path, _SCHEMA) as database:
        yield Journal(database, path)
