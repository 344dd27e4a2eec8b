"""A fake of `dht.contracts.Content` for tests of other parts: blobs in memory, sites share a `Swarm`."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from protocol.identifiers import digest_of
from protocol.instances import OnProgress, Progress
from protocol.problems import (
    BadRequest,
    Conflict,
    ContentNotFound,
    DeadlineExceeded,
    DiskFull,
    Problem,
    TooLarge,
)


class Swarm:
    """What all sites hold. `latency_s`: of each fetch. `failure`: raised by every fetch from the network while set."""

    def __init__(self, *, latency_s: float = 0.0) -> None:
        self.latency_s = latency_s
        self.failure: Problem | None = None
        self.fetches = 0
        """Transfers that were made; coalesced calls count once."""
        self.sites: list[MemoryContent] = []

    def find(self, digest: str) -> bytes | None:
        return next((site.blobs[digest] for site in self.sites if digest in site.blobs), None)


class MemoryContent:
    """One site. Evicts like the real one: least recently used first, never what is pinned or being fetched."""

    def __init__(self, swarm: Swarm, *, quota_bytes: int = 1 << 30) -> None:
        self.blobs: dict[str, bytes] = {}
        """By last use, the oldest first."""
        self.pins: dict[str, set[str]] = {}
        self._quota = quota_bytes
        self._swarm = swarm
        self._transfers: dict[str, asyncio.Lock] = {}
        swarm.sites.append(self)

    def has(self, digest: str) -> bool:
        return digest in self.blobs

    def held(self) -> Sequence[str]:
        return sorted(self.blobs)

    async def add(self, path: Path, *, pin: str | None = None, on_progress: OnProgress | None = None) -> str:
        try:
            data = await asyncio.to_thread(path.read_bytes)
        except OSError as error:
            raise BadRequest(f"{path} cannot be read: {error.strerror}", fix="Name a readable file.") from error
        digest = digest_of(data)
        self._keep(digest, data)
        if pin is not None:
            await self.pin(digest, pin)
        if on_progress is not None:
            on_progress(Progress("verify", f"reading {path.name}", len(data)))
        return digest

    async def fetch(
        self, digest: str, *, max_bytes: int, deadline_s: float, on_progress: OnProgress | None = None
    ) -> None:
        try:
            async with asyncio.timeout(deadline_s):
                async with self._transfers.setdefault(digest, asyncio.Lock()):
                    if not self.has(digest):
                        await self._transfer(digest, max_bytes, on_progress)
        except TimeoutError:
            raise DeadlineExceeded(f"{digest} was not here after {deadline_s:g} s") from None

    async def _transfer(self, digest: str, max_bytes: int, on_progress: OnProgress | None) -> None:
        self._swarm.fetches += 1
        await asyncio.sleep(self._swarm.latency_s)
        if self._swarm.failure is not None:
            raise self._swarm.failure
        data = self._swarm.find(digest)
        if data is None:
            raise ContentNotFound(f"no node offers {digest}")
        if len(data) > max_bytes:
            raise TooLarge(f"{digest} has {len(data)} bytes; at most {max_bytes} are wanted here")
        self._keep(digest, data)
        if on_progress is not None:
            on_progress(Progress("fetch", "from 1 peer", len(data), len(data)))

    @asynccontextmanager
    async def materialized(self, digest: str) -> AsyncIterator[Path]:
        if digest not in self.blobs:
            raise ContentNotFound(f"{digest} is not on this node", fix="Fetch it first.")
        self.blobs[digest] = self.blobs.pop(digest)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "blob"
            await asyncio.to_thread(path.write_bytes, self.blobs[digest])
            path.chmod(0o444)
            yield path

    async def pin(self, digest: str, why: str) -> None:
        self.pins.setdefault(digest, set()).add(why)

    async def unpin(self, digest: str, why: str) -> None:
        self.pins.get(digest, set()).discard(why)

    async def pinned(self) -> Collection[str]:
        return [digest for digest, reasons in self.pins.items() if reasons]

    async def remove(self, digest: str) -> None:
        if self.pins.get(digest):
            raise Conflict(f"{digest} is pinned: {', '.join(sorted(self.pins[digest]))}", fix="Unpin it first.")
        self.blobs.pop(digest, None)

    def _keep(self, digest: str, data: bytes) -> None:
        stay = sum(len(blob) for other, blob in self.blobs.items() if other != digest and self.pins.get(other))
        if stay + len(data) > self._quota:
            raise DiskFull(f"{len(data)} bytes do not fit beside what is pinned")
        self.blobs.pop(digest, None)
        for other in [d for d in self.blobs if not self.pins.get(d)]:
            if sum(map(len, self.blobs.values())) + len(data) > self._quota:
                del self.blobs[other]
        self.blobs[digest] = data
