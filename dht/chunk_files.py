"""Chunk files: each appears whole or not at all, is verified when it is read, and becomes durable with all others.

A file that was verified by this process is not hashed again for every peer that asks for it, as long as it is the same
file (inode, size, time of change) and not for longer than `TRUST_S`: what rots on disk meanwhile is found out then, and
by every receiver at once.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from protocol.identifiers import DIGEST_PREFIX

TRUST_S = 600.0
MAX_TRUSTED = 1 << 14

_libc = ctypes.CDLL(None, use_errno=True)


class _Seen(NamedTuple):
    inode: int
    size: int
    changed_ns: int
    until: float


@dataclass
class Temporary:
    descriptor: int
    name: str
    kept: bool = False

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self.descriptor, view) :]


class ChunkFiles:
    """`<root>/chunks/ab/<64 hex>`, temporary files in `<root>/work/`. Methods may be called from several threads."""

    def __init__(self, root: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._chunks, self._work = f"{root}/chunks", f"{root}/work"
        self._clock = clock
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        """Around `_trusted`; never held across I/O."""
        self._trusted: dict[str, _Seen] = {}

    def path(self, digest: str) -> str:
        """A string: for each chunk that moves, a `Path` would cost as much as the system calls (PTH is off here)."""
        name = digest.removeprefix(DIGEST_PREFIX)
        return f"{self._chunks}/{name[:2]}/{name}"

    def size(self, digest: str) -> int | None:
        """None if it is not here."""
        try:
            return os.stat(self.path(digest)).st_size
        except FileNotFoundError:
            return None

    def remove(self, digest: str) -> int:
        """Bytes of the file that went; 0 if it was not here."""
        size = self.size(digest)
        if size is None:
            return 0
        os.unlink(self.path(digest))
        return size

    def read(self, digest: str, buffer: memoryview) -> bool:
        """Fill `buffer` with the verified bytes; False if they are not the digest's, or of another length.

        Raises FileNotFoundError, and OSError if the disk cannot read.
        """
        descriptor = os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if status.st_size != len(buffer) or os.readv(descriptor, [buffer]) != len(buffer):
                return False
        finally:
            os.close(descriptor)
        if not self._is_trusted(digest, status):
            if not is_digest_of(buffer, digest):
                return False
            self.trust(digest, status)
        return True

    def is_intact(self, digest: str) -> bool:
        """It is here, can be read, and is what its name says."""
        try:
            size = self.size(digest)
            return size is not None and self.read(digest, memoryview(bytearray(size)))
        except OSError:
            return False

    def read_into(self, digest: str, buffer: memoryview) -> bool:
        """Fill `buffer`, unverified. False if the file is not there or has another length."""
        try:
            descriptor = os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return os.fstat(descriptor).st_size == len(buffer) == os.readv(descriptor, [buffer])
        finally:
            os.close(descriptor)

    def trust(self, digest: str, status: os.stat_result) -> None:
        """The file of this status was verified just now."""
        seen = _Seen(status.st_ino, status.st_size, status.st_mtime_ns, self._clock() + TRUST_S)
        with self._lock:
            self._trusted.pop(digest, None)
            self._trusted[digest] = seen
            if len(self._trusted) > MAX_TRUSTED:
                del self._trusted[next(iter(self._trusted))]

    def _is_trusted(self, digest: str, status: os.stat_result) -> bool:
        with self._lock:
            seen = self._trusted.get(digest)
        return (
            seen is not None
            and (seen.inode, seen.size, seen.changed_ns) == (status.st_ino, status.st_size, status.st_mtime_ns)
            and self._clock() < seen.until
        )

    @contextmanager
    def temporary(self) -> Iterator[Temporary]:
        """A new file, open for the time of the block. It goes at the end, unless it was kept."""
        name = f"{self._work}/{next(self._numbers)}"
        descriptor = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        file = Temporary(descriptor, name)
        try:
            yield file
        finally:
            os.close(descriptor)
            if not file.kept:
                os.unlink(name)

    def keep(self, file: Temporary, digest: str) -> None:
        """Under the chunk's name from now on; its bytes were verified."""
        target = self.path(digest)
        try:
            os.rename(file.name, target)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.rename(file.name, target)
        file.kept = True
        self.trust(digest, os.fstat(file.descriptor))

    def sync(self) -> None:
        """All files and names written so far are durable after this. Raises OSError.

        One `syncfs` costs a hundredth of the processor time of an fsync for each of a thousand chunks.
        """
        descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if _libc.syncfs(descriptor):
                error = ctypes.get_errno()
                raise OSError(error, os.strerror(error))
        finally:
            os.close(descriptor)


def is_digest_of(data: bytes | memoryview, digest: str) -> bool:
    return DIGEST_PREFIX + hashlib.sha256(data).hexdigest() == digest
