"""How much content may move and did move: upload slots, a bandwidth cap, byte counts. For the loop and for threads."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from msgspec import Struct

from dht.swarm.slots import Slots
from protocol.problems import TooManyRequests

Cause = Literal["manifest", "chunk", "duplicate", "corrupt"]

MAX_PEERS_COUNTED = 1024
OTHER_PEERS = "other"


class TokenBucket:
    """Pure: how long to wait so that at most `rate` bytes/s pass, after a burst of a quarter second. 0: no limit."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._burst = rate / 4
        self._tokens = self._burst
        self._at = 0.0

    def take(self, size: int, now: float) -> float:
        """Seconds to wait before `size` bytes may go. They are spent at once, so callers queue up fairly."""
        if not self._rate:
            return 0.0
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        self._tokens -= size
        return max(0.0, -self._tokens / self._rate)


class ByteCounts:
    """Bytes by (peer, cause). A hostile mesh cannot grow it: beyond MAX_PEERS_COUNTED peers, the rest is one."""

    def __init__(self) -> None:
        self._bytes: Counter[tuple[str, Cause]] = Counter()
        self._peers: set[str] = set()
        self._lock = threading.Lock()

    def add(self, peer: str, cause: Cause, size: int) -> None:
        with self._lock:
            if peer not in self._peers and len(self._peers) >= MAX_PEERS_COUNTED:
                peer = OTHER_PEERS
            self._peers.add(peer)
            self._bytes[peer, cause] += size

    def snapshot(self) -> Mapping[tuple[str, Cause], int]:
        with self._lock:
            return dict(self._bytes)


class Uploads:
    """A number of slots and a rate for what this node sends."""

    def __init__(self, *, slots: int, rate: float, clock: Callable[[], float]) -> None:
        self._slots = Slots(slots)
        self._count = slots
        self._bucket = TokenBucket(rate)
        self._clock = clock
        self._lock = threading.Lock()

    @property
    def busy(self) -> int:
        return self._slots.busy

    @contextmanager
    def slot(self, peer: str) -> Iterator[None]:
        """Raises TooManyRequests when all are taken: the peer turns to another provider, or comes back."""
        with self._lock:
            slot = self._slots.take(peer, self._clock())
            if slot is None:
                raise TooManyRequests(
                    f"all {self._count} upload slots are busy",
                    fix="Ask another provider or retry.",
                    retry_after=0.25,
                    within_s=round(self._slots.promise_s(self._clock()), 1),
                )
        try:
            yield
        finally:
            with self._lock:
                self._slots.give_back(slot, self._clock())

    def turn(self, size: int) -> float:
        """Seconds to wait before `size` bytes go out. They are counted now, whether or not they go."""
        with self._lock:
            return self._bucket.take(size, self._clock())

    async def pace(self, size: int) -> None:
        """Wait for the turn of `size` bytes."""
        if delay := self.turn(size):
            await asyncio.sleep(delay)


class ContentStats(Struct, frozen=True):
    """For metrics. Bytes by (peer node id, cause); `damaged`: chunks found corrupt on this disk since the start."""

    blobs: int
    stored_bytes: int
    quota_bytes: int
    uploads: int
    transfers: int
    damaged: int
    received: Mapping[tuple[str, Cause], int]
    sent: Mapping[tuple[str, Cause], int]
