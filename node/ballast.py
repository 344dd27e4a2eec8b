"""Room put aside on the disk of the data directory, so that a node can start when others have filled it.

Its databases need a little room before they can be read at all. An operator wants such a node up: it serves what it
has, refuses new content (`disk-full`) and says so. (CockroachDB keeps ballast files for the same reason.)
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import structlog

from dht.blobs.room import RESERVE
from dht.disk_errors import disk_errors
from protocol.problems import DiskFull, DiskUnusable, Problem

log = structlog.get_logger(__name__)

BALLAST_FILE = "ballast"
BALLAST_BYTES = 8 << 20
START_BYTES = 4 << 20
"""With less free space a start may fail."""
LOOK_EVERY_S = 60.0


def full_disk(free: int, data_dir: Path) -> Problem | None:
    """What an operator should know of a disk with so many bytes free, or nothing."""
    if free > RESERVE:
        return None
    return DiskFull(
        f"the disk of {data_dir} is full ({free >> 20} MB free): nothing new is kept here, what is here is served",
        fix="Free disk space; the node goes on by itself.",
    )


def disk_warning(data_dir: Path) -> Problem | None:
    """See `full_disk`; or what keeps the disk from being asked."""
    try:
        with disk_errors(str(data_dir)):
            return full_disk(shutil.disk_usage(data_dir).free, data_dir)
    except DiskUnusable as problem:
        return problem


def release_ballast(data_dir: Path) -> None:
    """Before a start: on a full disk the ballast makes room. Raises DiskUnusable."""
    with disk_errors(str(data_dir)):
        free = shutil.disk_usage(data_dir).free
        if free >= START_BYTES:
            return
        (data_dir / BALLAST_FILE).unlink(missing_ok=True)
    log.warning("disk-full", free_mb=free >> 20, fix="Free disk space: new content is refused until then.")


async def keep_ballast(data_dir: Path) -> None:
    """For ever: put room aside whenever there is some."""
    while True:
        put_aside(data_dir)
        await asyncio.sleep(LOOK_EVERY_S)


def put_aside(data_dir: Path) -> None:
    """Make the ballast, unless it is there or the disk has no room to spare."""
    path = data_dir / BALLAST_FILE
    try:
        if path.exists() or shutil.disk_usage(data_dir).free < BALLAST_BYTES + RESERVE:
            return
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, BALLAST_BYTES)
        except OSError:
            path.unlink()  # a part of it would be taken for the whole the next time
            raise
        finally:
            os.close(descriptor)
    except OSError as error:  # a start on a full disk may fail without it, no more
        log.debug("no-ballast", error=str(error))
