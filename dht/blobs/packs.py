"""Packs: one data file for each blob, into which its chunks are written where the blob has them.

    <root>/packs/<n>        the bytes, each at its offset in the blob; space is allocated before the first is written
    <root>/packs/<n>.kept   one byte for each slot: 1 once the bytes of that chunk are in the data file, else 0

The second is written after the first, so after `kill -9` a 1 is true. After a power cut it may not be: what was not
synced is verified before it is used. A pack whose chunks are all its own is the blob, byte for byte.

What was verified by this process is not hashed again for every peer that asks for it, for `TRUST_S` at most and as long
as nobody else changes the file (inode, time of change): what rots on disk meanwhile is found out then, and by every
receiver at once.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import structlog

from protocol.identifiers import DIGEST_PREFIX

log = structlog.get_logger(__name__)

TRUST_S = 600.0

_libc = ctypes.CDLL(None, use_errno=True)
_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01
"""linux/falloc.h"""
KEPT = b"\1"
_BLOCK = 4096
_UNSUPPORTED = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


class Place(NamedTuple):
    """Where the bytes of a chunk are, or will be."""

    pack: int
    slot: int
    offset: int
    length: int


class _Stamp(NamedTuple):
    """Of a file, as this process left it."""

    inode: int
    changed_ns: int


_NEVER = _Stamp(0, 0)


@dataclass
class _Pack:
    kept: bytearray = field(default_factory=bytearray)
    trusted_until: array[float] = field(default_factory=lambda: array("d"))
    stamp: _Stamp = _NEVER
    writers: int = 0
    """Threads that write to it just now: until they are done, a new time of change says nothing."""

    def reach(self, slot: int) -> None:
        """Have room for this slot."""
        more = slot + 1 - len(self.kept)
        if more > 0:
            self.kept.extend(bytes(more))
            self.trusted_until.extend([0.0] * more)

    def left(self, status: os.stat_result) -> None:
        """This process changed the file and left it like this, or found it so."""
        stamp = _stamp(status)
        if stamp.inode != self.stamp.inode or stamp.changed_ns > self.stamp.changed_ns:
            self.stamp = stamp

    def changed_by_others(self, status: os.stat_result) -> bool:
        stamp = _stamp(status)
        return not self.writers and (stamp.inode != self.stamp.inode or stamp.changed_ns > self.stamp.changed_ns)

    def distrust(self) -> None:
        self.trusted_until = array("d", bytes(8 * len(self.kept)))


class Packs:
    """Methods may be called from several threads; who changes which slots are kept must hold a lock of its own."""

    def __init__(self, root: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._folder = f"{root}/packs"
        self._clock = clock
        self._packs: dict[int, _Pack] = {}
        self._next = 1
        self._lock = threading.Lock()
        """Around stamps and writers; never held across I/O."""

    def path(self, pack: int) -> str:
        """A string: for each chunk that moves, a `Path` would cost as much as the system calls (PTH is off here)."""
        return f"{self._folder}/{pack}"

    # --- packs ----------------------------------------------------------------------------------------------------

    def numbers(self) -> list[int]:
        """Of all data files there are."""
        return sorted(int(entry.name) for entry in os.scandir(self._folder) if entry.name.isdigit())

    def open(self, live: Mapping[int, tuple[int, int]]) -> None:
        """Learn what was kept before. `live`: slots, and bytes that its file must have, by pack; other files go."""
        wanted = {str(pack) for pack in live} | {f"{pack}.kept" for pack in live}
        for entry in list(os.scandir(self._folder)):
            if entry.name not in wanted:
                os.unlink(entry.path)
        self._packs = {pack: self._found(pack, slots, end) for pack, (slots, end) in live.items()}
        self._next = max(live, default=0) + 1

    def _found(self, pack: int, slots: int, end: int) -> _Pack:
        found = _Pack()
        found.reach(slots - 1)
        try:
            status = os.stat(self.path(pack))
            with open(f"{self.path(pack)}.kept", "rb") as file:
                kept = file.read(slots)
        except FileNotFoundError:
            return found
        if status.st_size >= end:
            found.kept[: len(kept)] = bytes(byte == KEPT[0] for byte in kept)
            found.left(status)
        return found

    def new(self) -> int:
        """The number of a pack that never was."""
        pack = self._next
        self._next += 1
        return pack

    def allocate(self, pack: int, places: Iterable[Place], size: int = 0) -> None:
        """Make the pack's files, and take the room that these places need, so that writing them cannot fail for want
        of it where the file system can promise that. Raises OSError."""
        known = self._packs.setdefault(pack, _Pack())
        places = tuple(places)
        descriptor = self._open(pack)
        try:
            with _opened(f"{self.path(pack)}.kept", os.O_CREAT | os.O_WRONLY) as kept:
                slots = max((place.slot + 1 for place in places), default=0)
                if os.fstat(kept).st_size < slots:
                    os.ftruncate(kept, slots)
            if os.fstat(descriptor).st_size < size:
                os.ftruncate(descriptor, size)
            for offset, length in _runs(_sorted(places)):
                _allocate(descriptor, offset, length)
            self._left(known, descriptor)
        finally:
            os.close(descriptor)

    def _open(self, pack: int) -> int:
        flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC
        try:
            return os.open(self.path(pack), flags, 0o600)
        except PermissionError:  # it was handed out as a read-only file
            os.chmod(self.path(pack), 0o600)
            return os.open(self.path(pack), flags, 0o600)

    def remove(self, pack: int) -> None:
        self._packs.pop(pack, None)
        for name in (f"{self.path(pack)}.kept", self.path(pack)):
            try:
                os.unlink(name)
            except FileNotFoundError:
                continue

    def as_file(self, pack: int, size: int) -> Path | None:
        """The data file, read-only, if it has this size."""
        path = Path(self.path(pack))
        try:
            if path.stat().st_size != size:
                return None
            path.chmod(0o444)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.EROFS:  # on such a file system nobody can write to it anyway
                raise
        return path

    def sync(self) -> None:
        """All that was written so far is durable after this. Raises OSError.

        One `syncfs` costs a hundredth of the processor time of an fsync for each of many files.
        """
        descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if _libc.syncfs(descriptor):
                raise _errno()
        finally:
            os.close(descriptor)

    # --- chunks ---------------------------------------------------------------------------------------------------

    def has(self, place: Place) -> bool:
        """The chunk was written there. Touches no disk."""
        pack = self._packs.get(place.pack)
        return pack is not None and place.slot < len(pack.kept) and pack.kept[place.slot] == KEPT[0]

    def write(self, place: Place, data: bytes | memoryview) -> None:
        """Verified bytes. They count once `keep` was called. Raises OSError; FileNotFoundError if the pack has gone."""
        pack = self._packs.get(place.pack)
        if pack is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.path(place.pack))
        with _opened(self.path(place.pack), os.O_WRONLY) as file, self._writing(pack, file):
            _write_at(file, data, place.offset)
        with _opened(f"{self.path(place.pack)}.kept", os.O_WRONLY) as kept:
            _write_at(kept, KEPT, place.slot)

    def keep(self, place: Place) -> None:
        """What was written there counts from now on. The pack is there."""
        pack = self._packs[place.pack]
        pack.reach(place.slot)
        pack.kept[place.slot] = KEPT[0]
        pack.trusted_until[place.slot] = self._clock() + TRUST_S

    def drop(self, places: Sequence[Place]) -> None:
        """Chunks of one pack that count no more; their room is free where the file system can punch holes."""
        number = places[0].pack
        pack = self._packs[number]
        for place in places:
            pack.reach(place.slot)
            pack.kept[place.slot] = 0
            pack.trusted_until[place.slot] = 0.0
        try:
            with _opened(f"{self.path(number)}.kept", os.O_WRONLY) as kept:
                for place in places:
                    _write_at(kept, b"\0", place.slot)
        except FileNotFoundError:
            return
        descriptor = self._open(number)
        try:
            for offset, length in _runs(_sorted(places)):
                _punch(descriptor, offset, length)
            self._left(pack, descriptor)
        finally:
            os.close(descriptor)

    def trim(self, pack: int, places: Sequence[Place]) -> None:
        """Free what a crash left allocated between these places, which are all that is used of the pack."""
        if not Path(self.path(pack)).exists():
            return
        descriptor = self._open(pack)
        try:
            status, runs = os.fstat(descriptor), _runs(_sorted(places))
            if status.st_blocks * 512 > sum(length for _, length in runs) + 2 * _BLOCK * (len(runs) + 1):
                ends = [0, *(offset + length for offset, length in runs)]
                starts = [*(offset for offset, _ in runs), status.st_size]
                for end, start in zip(ends, starts, strict=True):
                    if start > end:
                        _punch(descriptor, end, start - end)
                self._left(self._packs[pack], descriptor)
        finally:
            os.close(descriptor)

    def read(self, place: Place, digest: str, buffer: memoryview) -> bool:
        """Fill `buffer` with the verified bytes; False if they are not the digest's, or of another length.

        Raises FileNotFoundError, and OSError if the disk cannot read.
        """
        status = self._fill(place, buffer)
        pack = self._packs.get(place.pack)
        if status is None or pack is None:
            return False
        if not self._trusts(pack, place.slot, status):
            if not is_digest_of(buffer, digest):
                return False
            pack.trusted_until[place.slot] = self._clock() + TRUST_S
        return True

    def is_intact(self, place: Place, digest: str) -> bool:
        """It can be read, and is what it should be."""
        try:
            return self.read(place, digest, memoryview(bytearray(place.length)))
        except OSError:
            return False

    def read_into(self, place: Place, buffer: memoryview) -> bool:
        """Fill `buffer`, unverified. False if nothing was kept there or it has another length."""
        try:
            return self.has(place) and self._fill(place, buffer) is not None
        except FileNotFoundError:
            return False

    def copy(self, places: Iterable[Place], path: Path) -> None:
        """A new read-only file of these chunks, one after the other, unverified. Raises OSError, and EOFError if a pack
        is cut short. The kernel copies: that costs half the processor time of reading and writing."""
        whole = [(pack, *run) for pack, group in groupby(places, lambda place: place.pack) for run in _runs(group)]
        target = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o444)
        try:
            _allocate(target, 0, sum(length for _, _, length in whole))
            for pack, offset, length in whole:
                with _opened(self.path(pack), os.O_RDONLY) as source:
                    _send(target, source, offset, length)
        finally:
            os.close(target)

    def untrusted(self, places: Sequence[Place]) -> list[int]:
        """Indices of those that must be read to know that they are what they should be."""
        found: dict[int, os.stat_result | None] = {}
        for number in {place.pack for place in places}:
            try:
                found[number] = os.stat(self.path(number))
            except FileNotFoundError:
                found[number] = None
        return [
            index
            for index, place in enumerate(places)
            if not self.has(place)
            or (status := found[place.pack]) is None
            or not self._trusts(self._packs[place.pack], place.slot, status)
        ]

    def distrust(self, packs: Iterable[int]) -> None:
        """All of them is verified when it is read next."""
        for number in packs:
            if pack := self._packs.get(number):
                pack.distrust()

    def _fill(self, place: Place, buffer: memoryview) -> os.stat_result | None:
        with _opened(self.path(place.pack), os.O_RDONLY) as descriptor:
            if place.length == len(buffer) == os.preadv(descriptor, [buffer], place.offset):
                return os.fstat(descriptor)
            return None

    @contextmanager
    def _writing(self, pack: _Pack, descriptor: int) -> Iterator[None]:
        with self._lock:
            pack.writers += 1
        try:
            yield
        finally:
            status = os.fstat(descriptor)
            with self._lock:
                pack.writers -= 1
                pack.left(status)

    def _left(self, pack: _Pack, descriptor: int) -> None:
        status = os.fstat(descriptor)
        with self._lock:
            pack.left(status)

    def _trusts(self, pack: _Pack, slot: int, status: os.stat_result) -> bool:
        with self._lock:
            if pack.changed_by_others(status):
                pack.distrust()
                pack.left(status)
        return pack.trusted_until[slot] > self._clock()


def is_digest_of(data: bytes | memoryview, digest: str) -> bool:
    return DIGEST_PREFIX + hashlib.sha256(data).hexdigest() == digest


def _stamp(status: os.stat_result) -> _Stamp:
    return _Stamp(status.st_ino, status.st_mtime_ns)


def _write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """All of it."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


@contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    """Opened for each chunk: that costs a hundredth of hashing it, and nobody has to close it."""
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _runs(places: Iterable[Place]) -> list[tuple[int, int]]:
    """(offset, length) of what they cover in their pack, in this order, neighbours as one."""
    runs: list[tuple[int, int]] = []
    for place in places:
        if runs and sum(runs[-1]) == place.offset:
            runs[-1] = (runs[-1][0], runs[-1][1] + place.length)
        else:
            runs.append((place.offset, place.length))
    return runs


def _sorted(places: Iterable[Place]) -> list[Place]:
    return sorted(places, key=lambda place: place.offset)


def _send(target: int, source: int, offset: int, length: int) -> None:
    """Append a part of a file to another."""
    while length:
        sent = os.sendfile(target, source, offset, length)
        if not sent:
            raise EOFError
        offset, length = offset + sent, length - sent


def _allocate(descriptor: int, offset: int, length: int) -> None:
    """glibc writes a byte into each block where the file system cannot; elsewhere room is taken as it is written."""
    if not length:
        return
    try:
        os.posix_fallocate(descriptor, offset, length)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        os.ftruncate(descriptor, max(os.fstat(descriptor).st_size, offset + length))


def _punch(descriptor: int, offset: int, length: int) -> None:
    punch = getattr(_libc, "fallocate64", _libc.fallocate)
    if punch(descriptor, _PUNCH_HOLE_KEEP_SIZE, ctypes.c_int64(offset), ctypes.c_int64(length)):
        log.warning("room-not-freed", bytes=length, why=_errno().strerror)


def _errno() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
