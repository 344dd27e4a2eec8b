"""Chunks by digest: index and packs together. What is here, where, how it is read, written, found damaged and freed.

A chunk has its home in the pack of the blob that wanted it first, at its offset in that blob; other blobs that use it
have a hole there. When a blob goes, the chunks that others use stay in its pack, and the room of the rest is freed.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import structlog

from dht.blobs.index import BlobIndex, Gone
from dht.blobs.packs import Packs, Place, is_digest_of
from dht.blobs.salvage import salvage
from dht.quiet import Quiet
from protocol.manifest import Manifest
from protocol.problems import Conflict, ContentNotFound, CorruptContent

log = structlog.get_logger(__name__)


class Chunks:
    """`lock`: the store's, around index and packs; not held while chunks are read and written.

    `on_damage` hears, with the lock held, of blobs that are not whole any more.
    """

    def __init__(
        self, packs: Packs, index: BlobIndex, lock: threading.RLock, on_damage: Callable[[Iterable[str]], None]
    ) -> None:
        self.packs = packs
        self._index = index
        self._lock = lock
        self._on_damage = on_damage
        self.present_bytes = 0
        """Those that blobs share are counted once."""
        self.damaged = 0
        """Found since opening."""
        self._quiet = Quiet()

    # --- where they are -------------------------------------------------------------------------------------------

    def place(self, digest: str) -> Place | None:
        """Where a chunk is; None if it is not here."""
        with self._lock:
            return next((place for place in self._index.places(digest) if self.packs.has(place)), None)

    def _wanted(self, digest: str, length: int) -> list[Place]:
        """Where a chunk is to be written; the lock is held."""
        places = self._index.places(digest)
        return [place for place in places if place.length == length and not self.packs.has(place)]

    def places(self, manifest: Manifest) -> list[Place | None]:
        """Of each position: in the blob's own pack, where possible; None if the blob is not known."""
        with self._lock:
            own = self._index.pack_of(manifest.digest)
            known = self._index.places_of(manifest.digest)
        anywhere = {(chunk, place.length): place for chunk, place in sorted(known, key=lambda k: self.packs.has(k[1]))}
        here = {(chunk, place.slot): place for chunk, place in known if place.pack == own}
        return [
            here.get((chunk.digest, position)) or anywhere.get((chunk.digest, chunk.length))
            for position, chunk in enumerate(manifest.chunks)
        ]

    def places_of_known(self, manifest: Manifest) -> list[Place]:
        """Raises Conflict if the blob is not known any more."""
        places = [place for place in self.places(manifest) if place is not None]
        if len(places) < len(manifest.chunks):
            raise Conflict(f"{manifest.digest} was removed while it was used", fix="Fetch it again.")
        return places

    def own_file(self, manifest: Manifest, places: Sequence[Place]) -> Path | None:
        """The blob's pack, if it is the blob: no chunk has its home elsewhere."""
        with self._lock:
            pack = self._index.pack_of(manifest.digest)
        if pack is None or any(place[:2] != (pack, position) for position, place in enumerate(places)):
            return None
        return self.packs.as_file(pack, manifest.size)

    # --- reading --------------------------------------------------------------------------------------------------

    def read(self, place: Place, digest: str, buffer: memoryview) -> bool:
        """Fill `buffer` with the verified chunk; False if it is not there, or was damaged and is dropped now."""
        if not self.packs.has(place):
            return False
        why = "it is not what its digest says"
        try:
            if self.packs.read(place, digest, buffer):
                return True
        except OSError as error:
            why = str(error)
        self._drop_damaged(place, digest, why)
        return False

    def bad_positions(self, manifest: Manifest, places: Sequence[Place]) -> tuple[int, ...]:
        """Reads every chunk that was not verified lately, which drops the damaged ones."""
        buffer = memoryview(bytearray(max((place.length for place in places), default=0)))
        return tuple(
            i
            for i in self.packs.untrusted(places)
            if not self.read(places[i], manifest.chunks[i].digest, buffer[: places[i].length])
        )

    def write_copy(self, path: Path, manifest: Manifest, places: Sequence[Place]) -> None:
        """A read-only file of chunks that were verified lately. Raises ContentNotFound if that is no longer true of one
        of them, OSError."""
        try:
            self.packs.copy(places, path)
            intact = not self.packs.untrusted(places)
        except (FileNotFoundError, EOFError):
            intact = False
        if not intact:
            raise ContentNotFound(f"{manifest.digest} was damaged while it was copied", fix="Fetch it again.")

    def _drop_damaged(self, place: Place, chunk: str, why: str) -> None:
        with self._lock, self._index.transaction():
            if not self.packs.has(place) or self.packs.is_intact(place, chunk):
                return  # another thread dropped it, and it was fetched again meanwhile
            copies = [p for p in self._index.places(chunk) if p.pack == place.pack and self.packs.has(p)]
            self.packs.drop(copies)  # all that its blob has of it: a chunk is here or not
            self.present_bytes -= sum(copy.length for copy in copies)
            blobs = self._index.users_of(chunk)
            for blob in blobs:
                self._index.set_whole(blob, whole=False)
            self._on_damage(blobs)
            self.damaged += 1
        if self._quiet.may_say(f"pack {place.pack}", time.monotonic()):  # of a lost file all are; `damaged` counts them
            log.error("chunk-damaged", chunk=chunk, blobs=blobs, why=why)

    # --- writing --------------------------------------------------------------------------------------------------

    def put(self, digest: str, data: bytes | memoryview) -> bool:
        """Keep a chunk that a begun blob uses; False if it was here already or nobody wants it any more.

        Raises CorruptContent if the bytes are not what the digest says, OSError.
        """
        if not is_digest_of(data, digest):
            raise CorruptContent(f"a chunk of {len(data)} bytes is not {digest}")
        with self._lock:
            wanted = self._wanted(digest, len(data))
        try:
            for place in wanted:
                self.packs.write(place, data)
        except FileNotFoundError:
            return False
        with self._lock:
            wanted = self._wanted(digest, len(data)) if wanted else []
            for place in wanted:
                self.keep(place)
        return bool(wanted)

    def keep(self, place: Place) -> None:
        """What was written there counts from now on; the lock is held."""
        self.packs.keep(place)
        self.present_bytes += place.length

    def allocate(self, manifest: Manifest) -> tuple[int, ...]:
        """Take the disk space that a known blob still needs; returns the positions to bring, one for each distinct
        chunk. Raises OSError. The lock is held."""
        own = self._index.pack_of(manifest.digest)
        wanted: dict[int, list[Place]] = {} if own is None else {own: []}
        missing: dict[str, int] = {}
        for position, place in enumerate(self.places_of_known(manifest)):
            if not self.packs.has(place):
                wanted.setdefault(place.pack, []).append(place)
                missing.setdefault(manifest.chunks[position].digest, position)
        for pack, places in wanted.items():
            self.packs.allocate(pack, places, manifest.size if pack == own else 0)
        return tuple(missing.values())

    def discard(self, left: Iterable[Gone]) -> None:
        """Free the room of what the index no longer knows; the lock is held."""
        unused: dict[int, list[Place]] = {}
        for gone in left:
            unused.setdefault(gone.pack, [])
            for place in gone.places:
                unused.setdefault(place.pack, []).append(place)
        for pack, places in unused.items():
            self.present_bytes -= sum(place.length for place in places if self.packs.has(place))
            if not self._index.is_pack_used(pack):
                self.packs.remove(pack)
            elif places:
                self.packs.drop(places)

    def reconcile(self) -> None:
        """Bring index and packs together after a start, in a transaction of the caller's: packs and parts of packs that
        nothing uses go, blobs that lack a chunk are partial."""
        if self._index.is_new:
            salvage(self.packs, self._index)
            self._index.is_new = False
        self.packs.open(self._index.packs())
        self.present_bytes = 0
        absent: list[str] = []
        for pack, homes in itertools.groupby(self._index.homes(), key=lambda home: home[1].pack):
            places: list[Place] = []
            for chunk, place in homes:
                places.append(place)
                if self.packs.has(place):
                    self.present_bytes += place.length
                else:
                    absent.append(chunk)
            self.packs.trim(pack, places)
        self._index.partial_without(absent)
