"""The digest of a whole blob, taken in order while its chunks arrive in any order."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Sequence

from dht.blobs.packs import Packs, Place
from protocol.identifiers import DIGEST_PREFIX
from protocol.manifest import Manifest

AT_ONCE = 8
"""Chunks that one arrival may take in, so that no connection waits long for the thread that reads it."""


class Proof:
    """Hashes each chunk as it arrives, or from the page cache soon after.

    `places`: of each position of the manifest. `absent`: digests of chunks that are not here yet. Methods may be called
    from any thread.
    """

    def __init__(self, packs: Packs, manifest: Manifest, places: Sequence[Place], absent: Iterable[str]) -> None:
        self._packs = packs
        self._manifest = manifest
        self._places = places
        self._absent = set(absent)
        self._position = 0
        self._whole = hashlib.sha256()
        self._broken = False
        self._turn = threading.Lock()
        self._buffer = memoryview(bytearray(max((c.length for c in manifest.chunks), default=0)))

    def arrived(self, digest: str, data: memoryview) -> None:
        """A chunk was kept. Takes in what is next in order, unless another thread is at it."""
        self._absent.discard(digest)
        if self._turn.acquire(blocking=False):
            try:
                self._advance(AT_ONCE, digest, data)
            finally:
                self._turn.release()

    def holds(self) -> bool:
        """All chunks are here and are the blob. Reads what was not taken in yet."""
        with self._turn:
            self._absent.clear()
            self._advance(len(self._manifest.chunks))
        return not self._broken and DIGEST_PREFIX + self._whole.hexdigest() == self._manifest.digest

    def _advance(self, at_most: int, hot: str = "", data: memoryview | None = None) -> None:
        chunks = self._manifest.chunks
        for chunk in chunks[self._position : self._position + at_most]:
            if self._broken or chunk.digest in self._absent:
                return
            if chunk.digest == hot and data is not None:
                view = data
            else:
                view = self._buffer[: chunk.length]
                self._broken = not self._packs.read_into(self._places[self._position], view)
            self._whole.update(view)
            self._position += 1
