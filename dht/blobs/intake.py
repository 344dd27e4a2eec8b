"""A file of this machine becomes a blob: read once, cut, hashed, and written while it is warm."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dht.blobs.chunking import manifest_of
from dht.blobs.chunks import Chunks
from dht.blobs.index import BlobIndex, Gone
from dht.blobs.packs import Place
from dht.blobs.room import Loan, Room
from dht.disk_errors import disk_errors
from protocol.manifest import Chunk, Manifest
from protocol.problems import BadRequest, Conflict, CorruptContent


class Intake:
    """Chunks of a blob whose digest is not known yet, on their way into a pack of their own.

    Nothing is evicted for them: they take what room there is. `BlobStore.begin` adopts them, makes room for the rest,
    and names what found none.
    """

    def __init__(self, pack: int, loan: Loan, chunks: Chunks, lock: threading.RLock) -> None:
        self.pack = pack
        self.loan = loan
        self._chunks = chunks
        self._lock = lock
        self._places: list[Place] = []

    def read(self, path: Path, on_bytes: Callable[[int], None]) -> Manifest:
        """Raises BadRequest if the file cannot be read, Conflict if it changes meanwhile, TooLarge, DiskFull."""
        try:
            return manifest_of(path, on_bytes, self.take)
        except OSError as error:
            raise _unreadable(path, error) from error

    def take(self, slot: int, offset: int, chunk: Chunk, data: memoryview) -> None:
        """Keep a chunk that was hashed just now, unless it is here already or there is no room. Raises DiskFull."""
        with self._lock:
            if self.loan.rest < chunk.length or self._chunks.place(chunk.digest) is not None:
                return
            self.loan.written += chunk.length
        place = Place(self.pack, slot, offset, chunk.length)
        with disk_errors():
            self._chunks.packs.write(place, data)
        with self._lock:
            self._places.append(place)
            self._chunks.keep(place)

    def left(self, homes: Collection[Place | None] = ()) -> Gone:
        """What has no use, given where the blob's chunks are at home. Asked again, it is nothing. The lock is held."""
        places, self._places = self._places, []
        return Gone(self.pack, [place for place in places if place not in homes])


@contextmanager
def opened_intake(size: int, room: Room, chunks: Chunks, index: BlobIndex, lock: threading.RLock) -> Iterator[Intake]:
    """For a file of about this size. What no blob adopted goes at the end of the block. Raises OSError."""
    with lock:
        loan = room.lend(min(size, room.free()))
        intake = Intake(chunks.packs.new(), loan, chunks, lock)
        try:
            chunks.packs.allocate(intake.pack, ())
        except OSError:
            room.returned(loan)
            chunks.discard([intake.left()])
            raise
    try:
        yield intake
    finally:
        with lock:
            room.returned(loan)
            chunks.discard([intake.left()])


def put_from_file(
    chunks: Callable[[str, bytes], object], manifest: Manifest, missing: Sequence[int], path: Path
) -> None:
    """Hand the chunks at these positions to `chunks`. Raises Conflict if the file is not what the manifest says."""
    wanted = set(missing)
    offset = 0
    with path.open("rb", buffering=0) as file:
        for position, chunk in enumerate(manifest.chunks):
            if position in wanted:
                file.seek(offset)
                try:
                    chunks(chunk.digest, file.read(chunk.length))
                except CorruptContent as problem:
                    raise Conflict(f"{path} changed while it was read", fix="Add it again.") from problem
            offset += chunk.length


def size_of(path: Path) -> int:
    """Raises BadRequest if there is no such file."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> BadRequest:
    return BadRequest(f"{path} cannot be read: {error.strerror}", fix="Name a readable file.")
