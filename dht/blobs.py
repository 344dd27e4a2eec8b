"""The chunk store on disk: verified chunks by digest, shared between blobs, with a quota.

    <root>/chunks/ab/<64 hex>   one file per chunk; a file under this name was verified, then renamed here
    <root>/work/                temporary files, emptied on opening
    <root>/content.sqlite       what files cannot tell: manifests, who uses a chunk, pins, order of last use

The folders alone say which chunks are here, so a chunk costs no database transaction and `kill -9` loses none that
was kept. The database says what they are for, and is right after every crash: it commits (WAL, synchronous FULL)
before a blob counts as whole. It is opened in exclusive mode: a second process on the same folder is refused.

Every chunk is verified before it is kept and when it is read; a damaged one is dropped, and its blobs are partial
again until they are fetched anew. Methods block on the disk and may be called from several threads.

A blob counts as whole once its digest was proven (`finish`), and is whole after a power cut once its files were synced
and the database said so (`settle`). If the power fails in between, the blob is partial again, and what the disk kept of
it is verified before it is used.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import structlog

from dht.blob_index import BlobIndex, opened_index
from dht.chunk_files import ChunkFiles, Temporary, is_digest_of
from dht.proof import Proof
from dht.use_order import UseOrder
from protocol.identifiers import DIGEST_PREFIX
from protocol.manifest import Manifest
from protocol.problems import Conflict, ContentNotFound, CorruptContent, DiskFull

log = structlog.get_logger(__name__)

RESERVE = 16 << 20
"""Bytes of the file system that are left free for the database and for other programs."""

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Begun(NamedTuple):
    """`missing`: positions in the manifest, one per distinct chunk not here. `evicted`: blobs that had to go."""

    missing: tuple[int, ...]
    evicted: tuple[str, ...]


@contextmanager
def opened_store(root: Path, *, quota_bytes: int) -> Iterator[BlobStore]:
    """Raises ConfigError if the folder cannot be used, DiskFull if there is not even room for the database."""
    with _disk_errors():
        (root / "chunks").mkdir(parents=True, exist_ok=True)
        shutil.rmtree(root / "work", ignore_errors=True)
        (root / "work").mkdir()
    with opened_index(root / "content.sqlite") as index:
        store = BlobStore(root, index, quota_bytes)
        store.reconcile()
        try:
            yield store
        finally:
            try:
                store.settle()
                store.save_order()
            except DiskFull as problem:  # costs reading blobs again, or a choice of what to evict; hides no other error
                log.warning("store-not-settled", why=problem.detail)


class BlobStore:
    """Use `opened_store`. A blob is *held* while someone works with it: held and pinned blobs are never evicted."""

    def __init__(self, root: Path, index: BlobIndex, quota_bytes: int) -> None:
        self._root = root
        self._files = ChunkFiles(root)
        self._index = index
        self._quota = quota_bytes
        self._lock = threading.RLock()
        """Around database, folders and `_whole`; held across disk writes."""
        self._whole: set[str] = set()
        self._unsettled: set[str] = set()
        """Whole blobs of which the database does not say so yet."""
        self._settle_lock = threading.Lock()
        self._present_bytes = 0
        self._use = UseOrder()
        self.damaged = 0
        """Chunks found damaged since opening."""

    # --- what is here ---------------------------------------------------------------------------------------------

    @property
    def present_bytes(self) -> int:
        """Bytes of all chunks here, each counted once."""
        return self._present_bytes

    @property
    def quota_bytes(self) -> int:
        return self._quota

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
        """For each position of the manifest: is its chunk here?"""
        return [self._files.size(c.digest) is not None for c in manifest.chunks]

    def size_of(self, digest: str) -> int | None:
        """Bytes of a chunk; None if it is not here."""
        return self._files.size(digest)

    def read_chunk(self, digest: str) -> bytearray | None:
        """The verified chunk; None if it is not here, or was damaged and is dropped now."""
        size = self._files.size(digest)
        if size is None:
            return None
        data = bytearray(size)
        return data if self.read_chunk_into(digest, memoryview(data)) else None

    def read_chunk_into(self, digest: str, buffer: memoryview) -> bool:
        """Fill `buffer` with the verified chunk; False if it is not here, or was damaged and is dropped now."""
        try:
            if self._files.read(digest, buffer):
                return True
        except FileNotFoundError:
            return False
        except OSError as error:
            log.error("chunk-unreadable", chunk=digest, error=str(error))
        self._drop_damaged(digest)
        return False

    # --- a blob arrives -------------------------------------------------------------------------------------------

    def begin(self, manifest: Manifest) -> Begun:
        """Make room for a blob and name the chunks to bring. A manifest kept before for the digest is replaced.

        Chunks that a crash or another blob left here are not asked for again. Raises DiskFull, and then nothing is
        kept of a blob that was unknown before.
        """
        blob = manifest.digest
        with self._lock, _disk_errors():
            with self._index.transaction():
                old = self._index.chunks_of(blob)
                self._index.insert(manifest, self.touch(blob))
                evicted, unused = self._make_room(blob)
            self._whole.difference_update([blob, *evicted])
            for victim in evicted:
                self._use.forget(victim)
                log.info("blob-evicted", digest=victim, arriving=blob)
            self._delete_unused([*old, *unused])
            missing = {c.digest for c in manifest.chunks if self._files.size(c.digest) is None}
            positions = {c.digest: i for i, c in enumerate(manifest.chunks) if c.digest in missing}
            return Begun(tuple(sorted(positions.values())), tuple(evicted))

    def put(self, digest: str, data: bytes | memoryview) -> bool:
        """Keep a chunk that a begun blob uses; False if it was here already or nobody wants it any more.

        Raises CorruptContent if the bytes are not what the digest says, DiskFull.
        """
        if not is_digest_of(data, digest):
            raise CorruptContent(f"a chunk of {len(data)} bytes is not {digest}")
        with _disk_errors(), self._temporary() as file:
            file.write(data)
            with self._lock:
                if not self._index.is_used(digest) or self._files.size(digest) is not None:
                    return False
                self._files.keep(file, digest)
                self._present_bytes += len(data)
        return True

    def proof(self, manifest: Manifest, missing: Iterable[int]) -> Proof:
        """Of a begun blob that lacks the chunks at these positions."""
        return Proof(self._files, manifest, [manifest.chunks[i].digest for i in missing])

    def finish(self, digest: str, proof: Proof | None = None) -> tuple[int, ...]:
        """Verify the whole blob; empty: it is whole now. Else the positions that must be brought again.

        `proof`: one under way, which saves reading all of it again. Raises CorruptContent if each chunk is right and
        the blob is not: then the manifest is a lie.
        """
        manifest = self._manifest_or_raise(digest)
        if not (proof or self.proof(manifest, ())).holds():
            bad = self._bad_positions(manifest)
            if not bad:
                raise CorruptContent(f"the manifest does not describe {digest}")
            return bad
        self._count_as_whole(digest)
        return ()

    def vouch(self, manifest: Manifest) -> tuple[int, ...]:
        """Like `finish`, for a manifest that was made here: if all its chunks are right, so is the whole."""
        bad = self._bad_positions(manifest)
        if not bad:
            self._count_as_whole(manifest.digest)
        return bad

    def _count_as_whole(self, digest: str) -> None:
        with self._lock:
            if not self._index.is_known(digest):
                raise Conflict(f"{digest} was removed while it was fetched", fix="Fetch it again.")
            self._whole.add(digest)
            self._unsettled.add(digest)

    def settle(self) -> None:
        """What is whole now is whole after a power cut. Raises DiskFull."""
        with self._settle_lock, _disk_errors():
            with self._lock:
                batch = self._unsettled.copy()
            if not batch:
                return
            self._files.sync()
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
        """The blob as one read-only file. Raises ContentNotFound if it is not whole, or damaged; DiskFull."""
        with self.holding(digest):
            if not self.has(digest):
                raise ContentNotFound(f"{digest} is not on this node", fix="Fetch it first.")
            manifest = self._manifest_or_raise(digest)
            with self._temporary() as file:
                with _disk_errors():
                    intact = Proof(self._files, manifest, (), file.write).holds()
                    os.fchmod(file.descriptor, 0o444)
                if not intact:
                    bad = self._bad_positions(manifest)
                    raise ContentNotFound(f"{len(bad)} chunks of {digest} are damaged", fix="Fetch it again.")
                yield Path(file.name)

    def pin(self, digest: str, why: str) -> None:
        with self._lock, _disk_errors(), self._index.transaction():
            self._index.pin(digest, why)

    def unpin(self, digest: str, why: str) -> None:
        with self._lock, _disk_errors(), self._index.transaction():
            self._index.unpin(digest, why)

    def pins(self, digest: str) -> set[str]:
        with self._lock:
            return self._index.pins(digest)

    def remove(self, digest: str) -> bool:
        """False if there was nothing. Raises Conflict if it is pinned or in use."""
        with self._lock, _disk_errors():
            if pins := self.pins(digest):
                raise Conflict(f"{digest} is pinned: {', '.join(sorted(pins))}", fix="Unpin it first.")
            if digest in self._use.held():
                raise Conflict(f"{digest} is in use", fix="Try again when it is not.")
            return self._forget(digest)

    def abandon(self, digest: str) -> None:
        """Drop a blob that could not be completed, unless it is pinned."""
        with self._lock, _disk_errors():
            if not self.has(digest) and not self.pins(digest):
                self._forget(digest)

    # --- opening and closing --------------------------------------------------------------------------------------

    def reconcile(self) -> None:
        """Bring index and folders together: files that nothing uses go, blobs that lack a file are partial."""
        present: set[str] = set()
        with self._lock, _disk_errors(), self._index.transaction():
            for path in (self._root / "chunks").glob("??/*"):
                digest = DIGEST_PREFIX + path.name
                if self._index.is_used(digest):
                    present.add(digest)
                    self._present_bytes += path.stat().st_size
                else:
                    path.unlink()
            self._index.keep_whole_only(present)
        known = self._index.blobs()
        self._whole = {digest for digest, whole, _ in known if whole}
        self._use.restore({digest: used for digest, _, used in known})

    def save_order(self) -> None:
        """Write the order of last use, which is kept in memory so that a warm path touches no disk."""
        with self._lock, _disk_errors(), self._index.transaction():
            self._index.set_order(self._use.order())

    # --- inside; the lock is held ---------------------------------------------------------------------------------

    def _make_room(self, arriving: str) -> tuple[list[str], list[str]]:
        """Evicts by least recent use until all known blobs fit; returns the evicted and the chunks they used.

        Partial blobs count with their full size: what is begun is reserved. On a full disk the quota shrinks to
        what is here and what is free.
        """
        limit = min(self._quota, self._present_bytes + max(0, shutil.disk_usage(self._root).free - RESERVE))
        self._index.set_order(self._use.order())
        stay = self._index.pinned() | {arriving} | self._use.held()
        order = [digest for digest, _, _ in self._index.blobs() if digest not in stay]
        needed = self._index.bytes_used_by(stay)
        if needed > limit:
            raise DiskFull(
                f"{needed} bytes are needed with what is pinned or in use; this node may keep {limit}",
                fix="Raise the quota, free disk space, or withdraw services published here.",
            )
        evicted: list[str] = []
        unused: list[str] = []
        total = self._index.bytes_used_by([*stay, *order])
        for victim in order:
            if total <= limit:
                break
            total -= self._index.bytes_used_only_by(victim)
            unused += self._index.chunks_of(victim)
            self._index.delete(victim)
            evicted.append(victim)
        return evicted, unused

    def _forget(self, digest: str) -> bool:
        """Files first: on a full disk they make the room that the index needs. A crash in between is reconciled."""
        self._whole.discard(digest)
        self._use.forget(digest)
        for chunk in self._index.chunks_of(digest):
            if self._index.users_of(chunk) == [digest]:
                self._delete_file(chunk)
        with self._index.transaction():
            return self._index.delete(digest)

    def _delete_unused(self, chunks: Iterable[str]) -> None:
        for chunk in chunks:
            if not self._index.is_used(chunk):
                self._delete_file(chunk)

    def _delete_file(self, chunk: str) -> None:
        self._present_bytes -= self._files.remove(chunk)

    def _drop_damaged(self, chunk: str) -> None:
        with self._lock, self._index.transaction():
            if self._files.is_intact(chunk):
                return  # another thread dropped it, and it was fetched again meanwhile
            self._delete_file(chunk)
            blobs = self._index.users_of(chunk)
            for blob in blobs:
                self._index.set_whole(blob, whole=False)
            self._whole.difference_update(blobs)
            self.damaged += 1
        log.error("chunk-damaged", chunk=chunk, blobs=blobs)

    # --- files ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _temporary(self) -> Iterator[Temporary]:
        with ExitStack() as stack:
            with _disk_errors():
                file = stack.enter_context(self._files.temporary())
            yield file

    def _manifest_or_raise(self, digest: str) -> Manifest:
        manifest = self.manifest(digest)
        if manifest is None:
            raise ContentNotFound(f"{digest} is not on this node", fix="Fetch it first.")
        return manifest

    def _bad_positions(self, manifest: Manifest) -> tuple[int, ...]:
        """Reads every chunk, which drops the damaged ones."""
        return tuple(i for i, c in enumerate(manifest.chunks) if self.read_chunk(c.digest) is None)


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise DiskFull(f"writing content: {os.strerror(error.errno or 0)}", fix="Free disk space.") from error
        raise
