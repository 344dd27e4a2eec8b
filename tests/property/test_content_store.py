"""The chunk store under any sequence of arrivals, evictions, crashes and damage, beside a model in memory.

Blobs are made of a few parts that they share. A crash reopens the folder without settling what was whole.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dht.blobs.intake import put_from_file
from dht.blobs.store import BlobStore, opened_store
from protocol.identifiers import digest_of
from protocol.manifest import Chunk, Manifest
from protocol.problems import Conflict, ContentNotFound, CorruptContent, DiskFull
from tests.content_sites import damage, noise

PARTS = [noise(3000 + 1500 * seed, seed) for seed in range(6)]
BLOBS = [(0, 1), (1, 2), (2, 1, 0), (3,), (3, 3, 4), (5, 0), (4, 5, 2), ()]
TWICE = 3
"""The part that a blob has twice, in its file as well."""
QUOTA = 27_000
MEMORY = Path("/dev/shm")


def manifest_of_blob(number: int) -> Manifest:
    parts = [PARTS[i] for i in BLOBS[number]]
    data = b"".join(parts)
    return Manifest(digest_of(data), len(data), tuple(Chunk(digest_of(p), len(p)) for p in parts))


MANIFESTS = [manifest_of_blob(number) for number in range(len(BLOBS))]
numbers = st.integers(0, len(BLOBS) - 1)


class Store(RuleBasedStateMachine):
    """`kept`: parts that must be here; `whole`: blobs that must be; `pinned`."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None)
        self.root = Path(self.folder.name) / "blobs"
        self.stack = ExitStack()
        self.store: BlobStore = self.stack.enter_context(opened_store(self.root, quota_bytes=QUOTA))
        self.known: set[int] = set()
        self.whole: set[int] = set()
        self.pinned: set[int] = set()
        self.kept: set[int] = set()
        self.settled: set[int] = set()

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.stack.close()
            self.folder.cleanup()

    def number_of(self, digest: str) -> int:
        return next(n for n, manifest in enumerate(MANIFESTS) if manifest.digest == digest)

    def gone(self, *blobs: int) -> None:
        """Parts that nobody uses any more are not promised."""
        for blob in blobs:
            self.known.discard(blob)
            self.whole.discard(blob)
            self.settled.discard(blob)
        self.kept &= {part for blob in self.known for part in BLOBS[blob]}

    def keep(self, blob: int, parts: int) -> bool:
        """Begin it, and bring so many of the parts that are missing; false if there was no room."""
        manifest = MANIFESTS[blob]
        try:
            begun = self.store.begin(manifest)
        except DiskFull:
            if blob not in self.known:
                assert self.store.manifest(manifest.digest) is None, "nothing is kept of what was refused"
            return False
        self.known.add(blob)
        evicted = {self.number_of(digest) for digest in begun.evicted}
        assert not evicted & self.pinned
        self.gone(*evicted)
        missing = {BLOBS[blob][position] for position in begun.missing}
        assert missing == set(BLOBS[blob]) - self.kept, "what is here is not asked for, and what is not is"
        for part in sorted(missing)[:parts]:
            assert self.store.put(digest_of(PARTS[part]), PARTS[part])
            self.kept.add(part)
        return True

    @rule(blob=numbers, parts=st.integers(0, 2))
    def a_part_arrives(self, blob: int, parts: int) -> None:
        self.keep(blob, parts)

    @rule(blob=numbers)
    def all_of_it_arrives(self, blob: int) -> None:
        if self.keep(blob, len(PARTS)):
            assert self.store.finish(MANIFESTS[blob].digest) == ()
            self.whole.add(blob)

    @rule(blob=numbers)
    def it_is_added_from_a_file(self, blob: int) -> None:
        manifest = MANIFESTS[blob]
        file = Path(self.folder.name) / "file"
        file.write_bytes(b"".join(PARTS[i] for i in BLOBS[blob]))
        with self.store.intake(manifest.size) as intake:
            offset = 0
            for slot, chunk in enumerate(manifest.chunks):
                intake.take(slot, offset, chunk, memoryview(PARTS[BLOBS[blob][slot]]))
                offset += chunk.length
            try:
                begun = self.store.begin(manifest, intake)
            except DiskFull:
                return
            self.known.add(blob)
            self.gone(*(self.number_of(digest) for digest in begun.evicted))
            put_from_file(self.store.put, manifest, begun.missing, file)
            assert self.store.vouch(manifest) == ()
        self.whole.add(blob)
        self.kept |= set(BLOBS[blob])

    @rule(blob=numbers)
    def a_lying_manifest(self, blob: int) -> None:
        """Of bytes that are not the blob's."""
        parts = [PARTS[i] for i in BLOBS[blob]]
        lie = Manifest(digest_of(b"a lie"), sum(map(len, parts)), MANIFESTS[blob].chunks)
        if BLOBS[blob]:
            before = set(self.store.held())
            try:
                begun = self.store.begin(lie)
            except DiskFull:
                return
            for part in parts:
                self.store.put(digest_of(part), part)
            with suppress(CorruptContent):
                assert self.store.finish(lie.digest) != ()
            self.store.abandon(lie.digest)
            self.gone(*(self.number_of(digest) for digest in begun.evicted))
            assert set(self.store.held()) == before - set(begun.evicted)
            wanted = {part for known in self.known for part in BLOBS[known]}
            self.kept |= set(BLOBS[blob]) & wanted

    @rule(blob=numbers)
    def it_is_pinned(self, blob: int) -> None:
        self.store.pin(MANIFESTS[blob].digest, "test")
        self.pinned.add(blob)

    @rule(blob=numbers)
    def it_is_unpinned(self, blob: int) -> None:
        self.store.unpin(MANIFESTS[blob].digest, "test")
        self.pinned.discard(blob)

    @rule(blob=numbers)
    def it_is_removed(self, blob: int) -> None:
        try:
            assert self.store.remove(MANIFESTS[blob].digest) == (blob in self.known)
        except Conflict:
            assert blob in self.pinned
        else:
            assert blob not in self.pinned
            self.gone(blob)

    @rule(blob=numbers)
    def it_is_made_a_file(self, blob: int) -> None:
        try:
            with self.store.materialized(MANIFESTS[blob].digest) as path:
                assert path.read_bytes() == b"".join(PARTS[i] for i in BLOBS[blob])
        except ContentNotFound:
            assert blob not in self.whole
        except DiskFull:
            assert blob in self.whole
        self.gone(*(self.number_of(digest) for digest in self.store.evicted_for_copies()))

    @rule(part=st.integers(0, len(PARTS) - 1))
    def the_disk_rots(self, part: int) -> None:
        if part in self.kept:
            damage(self.root, PARTS[part])
            assert self.store.read_chunk(digest_of(PARTS[part])) is None
            for blob in {b for b in self.known if part in BLOBS[b]}:
                self.whole.discard(blob)
                self.settled.discard(blob)
            self.kept.discard(part)

    @rule()
    def it_settles(self) -> None:
        self.store.settle()
        self.settled = set(self.whole)

    @rule(killed=st.booleans())
    def the_process_starts_again(self, killed: bool) -> None:
        if killed:
            self.store.settle = lambda: None  # type: ignore[method-assign]
            self.store.save_order = lambda: None  # type: ignore[method-assign]
        self.stack.close()
        self.whole = set(self.settled if killed else self.whole)
        self.settled = set(self.whole)
        self.store = self.stack.enter_context(opened_store(self.root, quota_bytes=QUOTA))

    @invariant()
    def what_counts_as_whole_is_what_was_proven(self) -> None:
        if hasattr(self, "store"):
            assert self.store.held() == sorted(MANIFESTS[blob].digest for blob in self.whole)

    @invariant()
    def what_was_kept_is_here_byte_for_byte(self) -> None:
        if hasattr(self, "store"):
            for part in self.kept:
                assert self.store.read_chunk(digest_of(PARTS[part])) == PARTS[part]

    @invariant()
    def the_quota_holds_and_counts_what_is_shared_once(self) -> None:
        if hasattr(self, "store"):
            assert self.store.present_bytes <= QUOTA
            once = sum(len(PARTS[part]) for part in self.kept)
            assert once <= self.store.present_bytes <= once + len(PARTS[TWICE])
            on_disk = sum(f.stat().st_size for f in (self.root / "scratch").iterdir())
            assert on_disk == 0


Store.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestStore = Store.TestCase
