"""Which blobs are in use, and in what order they were used last. In memory, thread-safe, touches no disk: an event
loop may call it while the store writes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class UseOrder:
    """Places in the order are integers that grow with every use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()
        self._used: dict[str, int] = {}
        self._tick = 0

    def restore(self, used: Mapping[str, int]) -> None:
        """Begin with the order that `order` told in an earlier life."""
        with self._lock:
            self._used = dict(used)
            self._tick = max(used.values(), default=0)

    def order(self) -> dict[str, int]:
        """Each blob's place."""
        with self._lock:
            return dict(self._used)

    def touch(self, digest: str) -> int:
        """Now the most recently used; returns its place."""
        with self._lock:
            self._tick += 1
            self._used[digest] = self._tick
            return self._tick

    def forget(self, digest: str) -> None:
        with self._lock:
            self._used.pop(digest, None)

    @contextmanager
    def holding(self, digest: str) -> Iterator[None]:
        """Used now, and held for the time of the block."""
        self.touch(digest)
        with self._lock:
            self._held[digest] += 1
        try:
            yield
        finally:
            with self._lock:
                self._held[digest] -= 1
                if not self._held[digest]:
                    del self._held[digest]

    def held(self) -> set[str]:
        with self._lock:
            return set(self._held)
