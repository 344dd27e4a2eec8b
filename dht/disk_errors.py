"""What an error of the file system means, where it is the node's own files that are read and written."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from protocol.problems import DiskFull, DiskUnusable

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_ROOM_FOR_FILE = NO_ROOM | {errno.EFBIG}
_BROKEN = frozenset({errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ESTALE})
"""A disk that fails, a file system made read-only, files that somebody took away. No network says any of these."""
CHECK_DISK_FIX = "Check the disk and its mount (dmesg tells more); restart the node when it can be written again."


@contextmanager
def disk_errors(what: str = "content") -> Iterator[None]:
    """A disk without room is DiskFull, one that cannot be written or read DiskUnusable; others come out as they are."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        if error.errno in _NO_ROOM_FOR_FILE:
            raise DiskFull(f"{what} cannot be written: {reason}", fix="Free disk space.") from error
        if error.errno in _BROKEN:
            where = f" ({error.filename})" if error.filename else ""
            raise DiskUnusable(f"{what} cannot be read or written{where}: {reason}", fix=CHECK_DISK_FIX) from error
        raise
