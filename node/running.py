"""`<data-dir>/running.json`: where this machine's own commands find its node, and the lock that keeps it single."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import structlog

from dht.disk_errors import disk_errors
from protocol.problems import Conflict

log = structlog.get_logger(__name__)

STATE_FILE = "running.json"
LOCK_FILE = "node.lock"


class Running(msgspec.Struct, frozen=True):
    """Addresses of a running node, host:port; `rest` is a URL, and empty without the controller role."""

    node: str
    pid: int
    rest: str
    peer: str
    dht: str


@contextmanager
def sole_node(data_dir: Path) -> Iterator[None]:
    """Hold the data directory for the time of the block. Raises Conflict if another node runs from it, DiskUnusable.

    The kernel lets go of the lock when the process ends, however it ends.
    """
    with disk_errors(str(data_dir)):
        lock = (data_dir / LOCK_FILE).open("a")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"a node runs from {data_dir} already", fix="Stop that one first, or name another --data-dir."
            ) from None
        with disk_errors(str(data_dir)):
            (data_dir / STATE_FILE).unlink(missing_ok=True)  # of a node that was killed
        yield


@contextmanager
def shown(data_dir: Path, running: Running) -> Iterator[None]:
    """Keep `running.json` there for the time of the block. Raises DiskUnusable."""
    path = data_dir / STATE_FILE
    temporary = path.with_suffix(".new")
    with disk_errors(str(path)):
        temporary.write_bytes(msgspec.json.encode(running))
        temporary.replace(path)
    try:
        yield
    finally:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:  # who finds it sees by the lock that nobody runs
            log.warning("running-file-not-removed", file=str(path), error=str(error))


def running_node_of(data_dir: Path) -> Running | None:
    """The node that runs from `data_dir` now; None if there is none, or only what a killed one left behind."""
    try:
        running = msgspec.json.decode((data_dir / STATE_FILE).read_bytes(), type=Running)
        with (data_dir / LOCK_FILE).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return running
    except (OSError, msgspec.MsgspecError):
        return None
    return None
