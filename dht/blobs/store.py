"""The chunk store on disk: verified chunks by digest, shared between blobs, with a quota.

    <root>/packs/           one data file for each blob, and which of its chunks are there; see `dht.blobs.packs`
    <root>/scratch/         temporary files, emptied on opening
    <root>/content.sqlite   manifests, who uses a chunk and where its bytes are, pins, order of last use

The packs alone say which chunks are here, so a chunk costs no database transaction and `kill -9` loses none that was
kept. The database says what they are for, and is right after every crash: it commits (WAL, synchronous FULL) before a
blob counts as whole. That a blob was begun may be lost with the power, not by `kill -9`. It is opened in exclusive
mode: a second process on the same folder is refused.

Every chunk is verified before it is kept and when it is read; a damaged one is dropped, and its blobs are partial
again until they are fetched anew. Methods block on the disk and may be called from several threads.

A blob counts as whole once its digest was proven (`finish`), and is whole after a power cut once its files were synced
and the database said so (`settle`). If the power fails in between, the blob is partial again, and what the disk kept of
it is verified before it is used.
"""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import structlog

from dht.blobs.chunks import Chunks
from dht.blobs.index import BlobIndex, opened_index
from dht.blobs.intake import Intake, opened_intake
from dht.blobs.packs import Packs, Place
from dht.blobs.proof import Proof
from dht.blobs.room import Evicted, Room
from dht.blobs.use_order import UseOrder
from dht.disk_errors import disk_errors
from protocol.manifest import Manifest
from protocol.problems import ConfigError, Conflict, ContentNotFound, CorruptContent, DiskUnusable

log = structlog.get_logger(__name__)


class Begun(NamedTuple):
    """`missing`: positions in the manifest, one per distinct chunk not here. `evicted`: blobs that had to go."""

    missing: tuple[int, ...]
    evicted: tuple[str, ...]


@contextmanager
def opened_store(root: Path, *, quota_bytes: int) -> Iterator[BlobStore]:
    """Raises ConfigError if the folder cannot be used, DiskFull if there is not even room for the database."""
    if (root / "chunks").exists():
        raise ConfigError(
            f"{root} was written by an older Cornerstore, which kept each chunk in a file of its own",
            fix="Remove that folder, then publish again what was published here. All else is fetched when needed.",
        )
    with disk_errors():
        _make_folders(root)
    with opened_index(root / "content.sqlite") as index:
        store = BlobStore(root, index, quota_bytes)
        store.reconcile()
        store.keep_to_quota()
        try:
            yield store
        finally:
            try:
                store.settle()
                store.save_order()
            except DiskUnusable as problem:  # costs a choice of what to evict, or reading again; hides no error
                log.warning("store-not-settled", why=problem.detail)


def _make_folders(root: Path) -> None:
    (root / "packs").mkdir(parents=True, exist_ok=True)
    shutil.rmtree(root / "scratch", ignore_errors=True)
    (root / "scratch").mkdir()


class BlobStore:
    """Use `opened_store`. A blob is *held* while someone works with it: held and pinned blobs are never evicted."""

    def __init__(self, root: Path, index: BlobIndex, quota_bytes: int) -> None:
        self._root = root
        self._index = index
        self._lock = threading.RLock()
        """Around index, packs and `_whole`; held across disk writes, but not those of chunks."""
        self._whole: set[str] = set()
        self._unsettled: set[str] = set()
        """Whole blobs of which the database does not say so yet."""
        self._settle_lock = threading.Lock()
        self._use = UseOrder()
        self._room = Room(root, index, self._use, quota_bytes)
        self._chunks = Chunks(Packs(root), index, self._lock, on_damage=self._whole.difference_update)
        self._copies = itertools.count()
        self._evicted_for_copies: list[str] = []
        self._taken_away: list[str] = []
        """Blobs that went with the folder, of which `begin` has not told yet."""

    # --- what is here ---------------------------------------------------------------------------------------------

    @property
    def present_bytes(self) -> int:
        """Bytes of all chunks here; those that blobs share are counted once."""
        return self._chunks.present_bytes

    @property
    def damaged(self) -> int:
        """Chunks found damaged since opening."""
        return self._chunks.damaged

    @property
    def quota_bytes(self) -> int:
        return self._room.quota_bytes

    def has(self, digest: str) -> bool:
        """True if the whole blob is here. Touches no disk."""
        return digest in self._whole

    def held(self) -> list[str]:
        """All whole blobs. Touches no disk."""
        return sorted(self._whole.copy())

    def manifest(self, digest: str) -> Manifest | None:
        with self._lock:
            return self._index.manifest(digest)

    def present(self, manifest: Manifest) -> list[bool]:
        """For each position of a manifest that was begun: is its chunk here?"""
        return [place is not None and self._chunks.packs.has(place) for place in self._chunks.places(manifest)]

    def size_of(self, digest: str) -> int | None:
        """Bytes of a chunk; None if it is not here."""
        place = self._chunks.place(digest)
        return None if place is None else place.length

    def read_chunk(self, digest: str) -> bytearray | None:
        """The verified chunk; None if it is not here, or was damaged and is dropped now."""
        size = self.size_of(digest)
        if size is None:
            return None
        data = bytearray(size)
        return data if self.read_chunk_into(digest, memoryview(data)) else None

    def read_chunk_into(self, digest: str, buffer: memoryview) -> bool:
        """Fill `buffer` with the verified chunk; False if it is not here, or was damaged and is dropped now."""
        place = self._chunks.place(digest)
        return place is not None and self._chunks.read(place, digest, buffer)

    # --- a blob arrives -------------------------------------------------------------------------------------------

    @contextmanager
    def intake(self, size: int) -> Iterator[Intake]:
        """For a file of about this size whose digest nobody knows yet; `begin` adopts what it took. Raises DiskFull."""
        with self._lock, disk_errors():
            self._mend()
        with disk_errors(), opened_intake(size, self._room, self._chunks, self._index, self._lock) as intake:
            yield intake

    def begin(self, manifest: Manifest, intake: Intake | None = None) -> Begun:
        """Make room for a blob and name the chunks to bring. A manifest kept before for the digest is replaced.

        Chunks that a crash, another blob or the intake left here are not asked for again. Raises DiskFull, and then
        nothing is kept of a blob that was unknown before.
        """
        blob = manifest.digest
        with self._lock, disk_errors():
            self._mend()
            if self.has(blob) and self._index.manifest(blob) == manifest:
                self.touch(blob)
                return Begun((), ())
            known = self._index.is_known(blob)
            limit = self._room.limit()
            if intake is not None:
                self._room.returned(intake.loan)
            pack = self._chunks.packs.new() if intake is None else intake.pack
            with self._index.transaction(durable=False):  # lost, it would be begun anew
                replaced = self._index.insert(manifest, self.touch(blob), pack)
                evicted = self._room.make(blob, limit)
            self._whole.discard(blob)
            self._evict(evicted, arriving=blob)
            if replaced is not None:
                self._chunks.discard([replaced])
            if intake is not None:
                self._chunks.discard([intake.left(set(self._chunks.places(manifest)))])
            try:
                missing = self._chunks.allocate(manifest)
            except OSError:
                if not known:
                    self._forget(blob)
                raise
            gone, self._taken_away = self._taken_away, []
            return Begun(missing, (*evicted.blobs, *(digest for digest in gone if digest != blob)))

    def put(self, digest: str, data: bytes | memoryview) -> bool:
        """Keep a chunk that a begun blob uses; False if it was here already or nobody wants it any more.

        Raises CorruptContent if the bytes are not what the digest says, DiskFull.
        """
        with disk_errors():
            return self._chunks.put(digest, data)

    def proof(self, manifest: Manifest, missing: Iterable[int]) -> Proof:
        """Of a begun blob that lacks the chunks at these positions."""
        absent = [manifest.chunks[i].digest for i in missing]
        return Proof(self._chunks.packs, manifest, self._chunks.places_of_known(manifest), absent)

    def finish(self, digest: str, proof: Proof | None = None) -> tuple[int, ...]:
        """Verify the whole blob; empty: it is whole now. Else the positions that must be brought again.

        `proof`: one under way, which saves reading all of it again. Raises CorruptContent if each chunk is right and
        the blob is not: then the manifest is a lie.
        """
        manifest = self._manifest_or_raise(digest)
        if not (proof or self.proof(manifest, ())).holds():
            places = self._chunks.places_of_known(manifest)
            self._chunks.packs.distrust({place.pack for place in places})
            bad = self._chunks.bad_positions(manifest, places)
            if not bad:
                raise CorruptContent(f"the manifest does not describe {digest}")
            return bad
        self._count_as_whole(manifest)
        return ()

    def vouch(self, manifest: Manifest) -> tuple[int, ...]:
        """Like `finish`, for a manifest that was made here: if all its chunks are right, so is the whole."""
        bad = self._chunks.bad_positions(manifest, self._chunks.places_of_known(manifest))
        if not bad:
            self._count_as_whole(manifest)
        return bad

    def _count_as_whole(self, manifest: Manifest) -> None:
        digest = manifest.digest
        with self._lock:
            if not self._index.is_known(digest):
                raise Conflict(f"{digest} was removed while it was fetched", fix="Fetch it again.")
            self._whole.add(digest)
            self._unsettled.add(digest)

    def settle(self) -> None:
        """What is whole now is whole after a power cut. Raises DiskFull."""
        with self._settle_lock, disk_errors():
            with self._lock:
                batch = self._unsettled.copy()
            if not batch:
                return
            self._chunks.packs.sync()
            with self._lock, self._index.transaction():
                for digest in batch & self._whole:
                    self._index.set_whole(digest, whole=True)
                self._unsettled -= batch

    # --- a blob is used -------------------------------------------------------------------------------------------

    def touch(self, digest: str) -> int:
        """Now the most recently used; returns its place in the order. Touches no disk."""
        return self._use.touch(digest)

    @contextmanager
    def holding(self, digest: str) -> Iterator[None]:
        """Not evicted for the time of the block. Touches no disk."""
        with self._use.holding(digest):
            yield

    @contextmanager
    def materialized(self, digest: str) -> Iterator[Path]:
        """The blob as one read-only file, for the time of the block: its pack if all its chunks are there, else a copy
        that counts against the quota; see `evicted_for_copies`.

        Raises ContentNotFound if it is not whole, or damaged; DiskFull.
        """
        with self.holding(digest):
            if not self.has(digest):
                raise ContentNotFound(f"{digest} is not on this node", fix="Fetch it first.")
            manifest = self._manifest_or_raise(digest)
            places = self._chunks.places_of_known(manifest)
            if bad := self._chunks.bad_positions(manifest, places):
                raise ContentNotFound(f"{len(bad)} chunks of {digest} are damaged", fix="Fetch it again.")
            with disk_errors():
                path = self._chunks.own_file(manifest, places)
            if path is not None:
                yield path
            else:
                with self._copied(manifest, places) as path:
                    yield path

    @contextmanager
    def _copied(self, manifest: Manifest, places: Sequence[Place]) -> Iterator[Path]:
        blob = manifest.digest
        with self._lock, disk_errors():
            with self._index.transaction():
                evicted = self._room.make(blob, self._room.limit(), manifest.size)
            self._evict(evicted, arriving=blob)
            self._evicted_for_copies += evicted.blobs
            loan = self._room.lend(manifest.size)
        path = self._root / "scratch" / str(next(self._copies))
        try:
            with disk_errors():
                self._chunks.write_copy(path, manifest, places)
            with self._lock:
                loan.written = manifest.size
            yield path
        finally:
            path.unlink(missing_ok=True)
            with self._lock:
                self._room.returned(loan)

    def evicted_for_copies(self) -> list[str]:
        """Blobs that went to make room for copies, since this was asked last."""
        with self._lock:
            evicted, self._evicted_for_copies = self._evicted_for_copies, []
            return evicted

    def pin(self, digest: str, why: str) -> None:
        with self._lock, disk_errors(), self._index.transaction():
            self._index.pin(digest, why)

    def unpin(self, digest: str, why: str) -> None:
        with self._lock, disk_errors(), self._index.transaction():
            self._index.unpin(digest, why)

    def pins(self, digest: str) -> set[str]:
        with self._lock:
            return self._index.pins(digest)

    def pinned(self) -> set[str]:
        with self._lock:
            return self._index.pinned()

    def remove(self, digest: str) -> bool:
        """False if there was nothing. Raises Conflict if it is pinned or in use."""
        with self._lock, disk_errors():
            if pins := self.pins(digest):
                raise Conflict(f"{digest} is pinned: {', '.join(sorted(pins))}", fix="Unpin it first.")
            if digest in self._use.held():
                raise Conflict(f"{digest} is in use", fix="Try again when it is not.")
            return self._forget(digest)

    def abandon(self, digest: str) -> None:
        """Drop a blob that could not be completed, unless it is pinned."""
        with self._lock, disk_errors():
            if not self.has(digest) and not self.pins(digest):
                self._forget(digest)

    # --- opening and closing --------------------------------------------------------------------------------------

    def reconcile(self) -> None:
        """Bring index and packs together."""
        with self._lock, disk_errors(), self._index.transaction():
            self._chunks.reconcile()
        known = self._index.blobs()
        whole = {digest for digest, is_whole, _ in known if is_whole}
        self._whole.intersection_update(whole)
        self._whole.update(whole)
        self._use.restore({digest: used for digest, _, used in known})

    def keep_to_quota(self) -> None:
        """At a start: the quota may have been lowered since. Raises DiskFull, DiskUnusable."""
        with self._lock, disk_errors():
            with self._index.transaction():
                evicted = self._room.shrink()
            self._evict(evicted, arriving="")
            kept = self._index.bytes_used()
        if kept > self.quota_bytes:
            log.warning(
                "quota-exceeded",
                pinned_bytes=kept,
                quota_bytes=self.quota_bytes,
                fix="Raise quota_gb, or withdraw services published here: nothing new is kept until then.",
            )

    def save_order(self) -> None:
        """Write the order of last use, which is kept in memory so that a warm path touches no disk."""
        with self._lock, disk_errors(), self._index.transaction():
            self._index.set_order(self._use.order())

    # --- inside; the lock is held ---------------------------------------------------------------------------------

    def _mend(self) -> None:
        """Go on if somebody took the folder, or parts of it, away under the running node."""
        if not self._index.is_taken_away and (self._root / "packs").is_dir() and (self._root / "scratch").is_dir():
            return
        before = self._whole.copy()
        _make_folders(self._root)
        if self._index.is_taken_away:
            self._index.begin_anew()
        self._unsettled.clear()
        self.reconcile()
        lost = before - self._whole
        self._taken_away += lost
        log.error(
            "content-taken-away",
            folder=str(self._root),
            lost=len(lost),
            fix="Publish again what was published on this node; all else is fetched when it is needed.",
        )

    def _evict(self, evicted: Evicted, *, arriving: str) -> None:
        """The index has forgotten them."""
        self._whole.difference_update(evicted.blobs)
        for victim in evicted.blobs:
            self._use.forget(victim)
            log.info("blob-evicted", digest=victim, arriving=arriving)
        self._chunks.discard(evicted.left)

    def _forget(self, digest: str) -> bool:
        """Files before the commit: on a full disk they make the room that the index needs. A crash in between is
        reconciled."""
        self._whole.discard(digest)
        self._use.forget(digest)
        with self._index.transaction():
            gone = self._index.delete(digest)
            if gone is not None:
                self._chunks.discard([gone])
        return gone is not None

    def _manifest_or_raise(self, digest: str) -> Manifest:
        manifest = self.manifest(digest)
        if manifest is None:
            raise ContentNotFound(f"{digest} is not on this node", fix="Fetch it first.")
        return manifest
