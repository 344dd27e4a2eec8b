"""From a digest to an image: fetch the archive, read it, build it. At most once per digest at a time.

What was done before is not done again: a service that is described in the journal and built in the engine needs
neither its archive nor the mesh.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

from agent.journal import Journal
from agent.runtime import Runtime, Source, artifact_of
from dht.contracts import Content
from protocol.causes import Cause
from protocol.instances import OnProgress, Progress
from protocol.problems import Unavailable
from protocol.service import ServiceDescriptor

Describe = Callable[[Path], Awaitable[ServiceDescriptor]]
"""Read and check an archive: `csar.describe` with the node's limits. Raises InvalidArchive."""


class Timings:
    """Milliseconds by phase; `total` runs from the beginning."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._phases: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._phases[name] = round((time.perf_counter() - begin) * 1000, 3)

    def result(self) -> dict[str, float]:
        return {**self._phases, "total": round((time.perf_counter() - self._begin) * 1000, 3)}


class Archive:
    """One archive as a file, made once for all who read it: writing it out costs as much as reading it."""

    def __init__(self, make: Callable[[], Awaitable[Path]]) -> None:
        self._make = make
        self._file: Path | None = None

    async def file(self) -> Path:
        """Raises ContentNotFound, DiskFull."""
        if self._file is None:
            self._file = await self._make()
        return self._file


class Provision:
    def __init__(
        self,
        content: Content,
        describe: Describe,
        journal: Journal,
        *,
        max_archive_bytes: int,
        concurrent_builds: int,
    ) -> None:
        self._content = content
        self._describe = describe
        self._journal = journal
        self._max_archive_bytes = max_archive_bytes
        self._builds = asyncio.Semaphore(concurrent_builds)
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def archive(self, digest: str) -> AsyncIterator[Archive]:
        """The archive for as long as the block needs it; it is made a file at the first use, if ever."""
        async with AsyncExitStack() as stack:
            yield Archive(lambda: stack.enter_async_context(self._content.materialized(digest)))

    async def descriptor(
        self, digest: str, archive: Archive, *, deadline_s: float, timings: Timings, on_progress: OnProgress
    ) -> ServiceDescriptor:
        """What the archive says of the service. Raises what `Content.fetch` raises, and InvalidArchive."""
        known = self._journal.descriptor(digest)
        if known is not None:
            return known
        async with self._alone(digest):
            await self._fetch(digest, deadline_s, timings, on_progress)
            on_progress(Progress("verify", "reading the archive"))
            with timings.phase("verify"):
                descriptor = await self._describe(await archive.file())
            self._journal.keep_descriptor(digest, descriptor)
        return descriptor

    async def image(
        self,
        runtime: Runtime,
        digest: str,
        descriptor: ServiceDescriptor,
        archive: Archive,
        *,
        variant: str | None,
        force_rebuild: bool,
        deadline_s: float,
        timings: Timings,
        on_progress: OnProgress,
    ) -> str:
        """The image of the service on `runtime`. Raises BuildFailed, DiskFull, and what `Content.fetch` raises."""
        async with self._alone(digest):
            if not force_rebuild:
                ready = await runtime.image_of(digest, artifact_of(descriptor, variant))
                if ready is not None:
                    return ready
            await self._fetch(digest, deadline_s, timings, on_progress)
            async with self._builds:
                file = await archive.file()
                source = Source(descriptor=descriptor, digest=digest, archive=file, variant=variant)
                with timings.phase("build"):
                    return await runtime.prepare(source, force_rebuild=force_rebuild, on_progress=on_progress)

    async def keep(self, digest: str, instance: str) -> None:
        """The archive stays on this node while the instance exists."""
        if self._content.has(digest):
            await self._content.pin(digest, f"instance:{instance}")

    async def release(self, digest: str, instance: str) -> None:
        await self._content.unpin(digest, f"instance:{instance}")

    async def _fetch(self, digest: str, deadline_s: float, timings: Timings, on_progress: OnProgress) -> None:
        if self._content.has(digest):
            return
        on_progress(Progress("fetch", "fetching the archive"))
        with timings.phase("fetch"):
            try:
                await self._content.fetch(
                    digest, max_bytes=self._max_archive_bytes, deadline_s=deadline_s, on_progress=on_progress
                )
            except Unavailable as problem:
                problem.extra["cause"] = Cause.CONTENT  # those who have it are away, not this agent
                raise

    @asynccontextmanager
    async def _alone(self, digest: str) -> AsyncIterator[None]:
        """One worker per digest; the lock is forgotten with its last user."""
        lock, users = self._locks.get(digest, (asyncio.Lock(), 0))
        self._locks[digest] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(digest)
            if users > 1:
                self._locks[digest] = (lock, users - 1)
