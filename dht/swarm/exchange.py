"""`dht.contracts.Content` over a chunk store and HTTP to peers. `running_content` is the way in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from msgspec import Struct

from dht.blobs.chunking import compiled_cutter
from dht.blobs.intake import Intake, put_from_file, size_of
from dht.blobs.store import BlobStore, opened_store
from dht.contracts import Directory
from dht.disk import Disk, running_disk
from dht.peer_http import PeerHttp
from dht.swarm.announcing import Announcer, running_announcer
from dht.swarm.content_client import ContentClient
from dht.swarm.crowd import Crowd, Crowds
from dht.swarm.peer_streams import running_streams
from dht.swarm.sources import Surroundings
from dht.swarm.traffic import ByteCounts, ContentStats, Uploads
from dht.swarm.transfer import Transfer
from protocol.instances import OnProgress, Progress
from protocol.manifest import Manifest
from protocol.problems import (
    Conflict,
    ContentNotFound,
    DeadlineExceeded,
    DiskFull,
    Problem,
    TooLarge,
    Unavailable,
)

log = structlog.get_logger(__name__)

_HEAL_S = 60.0


class ContentConfig(Struct, frozen=True, kw_only=True):
    """`path`: the `blobs/` folder. `upload_mbit_s` 0: unlimited. `max_uploads`, `connections`: answers
    with chunks at once, to peers and from them."""

    path: Path
    quota_bytes: int = 20_000_000_000
    upload_mbit_s: float = 0.0
    max_uploads: int = 32
    disk_threads: int = 4
    connections: int = 32


@asynccontextmanager
async def running_content(
    config: ContentConfig,
    *,
    directory: Directory,
    http: PeerHttp,
    near: Callable[[str], bool] = lambda _: False,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Exchange]:
    """Content on this node and in the mesh. `near`: whether an address (`host:port`) is on this machine's own network.
    Announces all whole blobs again, in the background.

    Raises ConfigError if the folder is in use or pyfastcdc is not compiled, DiskFull.
    """
    compiled_cutter()
    async with (
        running_disk(config.disk_threads) as disk,
        running_announcer(directory) as announcer,
        running_streams(http, connections=config.connections) as streams,
    ):
        stack = ExitStack()
        try:
            store = await disk(stack.enter_context, opened_store(config.path, quota_bytes=config.quota_bytes))
            for digest in store.held():
                announcer.announce(digest)
            around = Surroundings(store, disk, directory, ContentClient(http, streams), announcer, clock, near)
            uploads = Uploads(slots=config.max_uploads, rate=config.upload_mbit_s * 1e6 / 8, clock=clock)
            exchange = Exchange(around, uploads)
            try:
                yield exchange
            finally:
                await exchange.stop()
        finally:
            await disk(stack.close)


@dataclass
class _Waiter:
    max_bytes: int
    on_progress: OnProgress | None


@dataclass
class _Shared:
    """A transfer under way and the calls that wait for it."""

    sized: asyncio.Future[int]
    waiters: list[_Waiter] = field(default_factory=list)
    task: asyncio.Task[None] | None = None

    def limit(self) -> int:
        return max((w.max_bytes for w in self.waiters), default=0)

    def on_size(self, size: int) -> None:
        if not self.sized.done():
            self.sized.set_result(size)

    def on_progress(self, progress: Progress) -> None:
        for waiter in self.waiters:
            if waiter.on_progress is not None:
                waiter.on_progress(progress)


class Exchange:
    """Implements `dht.contracts.Content`; `content_routes` and `content_server` serve it to peers."""

    def __init__(self, around: Surroundings, uploads: Uploads) -> None:
        self._around = around
        self._store: BlobStore = around.store
        self._disk: Disk = around.disk
        self._announcer: Announcer = around.announcer
        self._transfers: dict[str, _Shared] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.uploads = uploads
        self.crowds = Crowds()
        self.clock = around.clock
        self.sent = ByteCounts()

    async def stop(self) -> None:
        """Give up all transfers; what arrived is kept for the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def stats(self) -> ContentStats:
        return ContentStats(
            blobs=len(self._store.held()),
            stored_bytes=self._store.present_bytes,
            quota_bytes=self._store.quota_bytes,
            uploads=self.uploads.busy,
            transfers=len(self._transfers),
            damaged=self._store.damaged,
            received=self._around.received.snapshot(),
            sent=self.sent.snapshot(),
        )

    # --- for peers ------------------------------------------------------------------------------------------------

    async def manifest(self, digest: str) -> Manifest | None:
        """What a peer asks for counts as used: what serves many is not the first to go."""
        if self.has(digest):
            self._store.touch(digest)
        return await self._disk(self._store.manifest, digest)

    async def present(self, manifest: Manifest) -> list[bool]:
        """For each position of the manifest: is its chunk here?"""
        if self.has(manifest.digest):
            return [True] * len(manifest.chunks)
        return await self._disk(self._store.present, manifest)

    def super_seeds(self, digest: str) -> bool:
        """Whether a crowd that fetches the blob is told to pass chunks on rather than get each from here again."""
        return self.has(digest) and not self.crowds.belongs(digest, self.clock())

    async def elsewhere(self, blob: str, asker: str, chunks: Sequence[str]) -> set[str]:
        """Chunks that others of the blob's crowd are to pass on to the asker; the rest counts as given to it now."""
        crowd = await self._crowd(blob)
        if crowd is None:
            return set()
        now = self.clock()
        crowd.asked(asker, now)
        passed_on = {chunk for chunk in chunks if not crowd.gives(asker, chunk, now)}
        for chunk in chunks:
            if chunk not in passed_on:
                crowd.gave(asker, chunk, now)
        return passed_on

    async def _crowd(self, blob: str) -> Crowd | None:
        """The crowd that may be sent elsewhere, to which whoever asks for its sake belongs."""
        if not self.super_seeds(blob):
            return None
        crowd = self.crowds.known(blob)
        if crowd is None:
            manifest = await self.manifest(blob)
            if manifest is None:
                return None
            crowd = self.crowds.of(manifest, self.clock())
        return crowd

    def sizes(self, digests: Sequence[str]) -> list[int]:
        """Bytes of each chunk; 0 if it is not here. Blocks on the disk; from any thread."""
        return [self._store.size_of(digest) or 0 for digest in digests]

    def read_chunk_into(self, digest: str, buffer: memoryview) -> bool:
        """False if the verified chunk of just this length is not here. Blocks on the disk; from any thread."""
        return self._store.read_chunk_into(digest, buffer)

    # --- Content --------------------------------------------------------------------------------------------------

    def has(self, digest: str) -> bool:
        return self._store.has(digest)

    def held(self) -> Sequence[str]:
        return self._store.held()

    async def add(self, path: Path, *, pin: str | None = None, on_progress: OnProgress | None = None) -> str:
        """See `Content.add`. Also raises BadRequest if the file cannot be read, Conflict if it changes meanwhile."""
        loop = asyncio.get_running_loop()

        def on_bytes(done: int) -> None:
            if on_progress is not None:
                loop.call_soon_threadsafe(on_progress, Progress("verify", f"reading {path.name}", done))

        stack = ExitStack()
        try:
            size = await self._disk(size_of, path)
            intake = await self._disk(stack.enter_context, self._store.intake(size))
            return await self._add(await self._disk(intake.read, path, on_bytes), intake, path, pin)
        finally:
            await self._disk(stack.close)

    async def _add(self, manifest: Manifest, intake: Intake, path: Path, pin: str | None) -> str:
        digest = manifest.digest
        with self._store.holding(digest):
            newly_pinned = pin is not None and pin not in await self._disk(self._store.pins, digest)
            try:
                if not self.has(digest):
                    await self._keep_file(manifest, intake, path)
                await self._disk(self._store.settle)
                if pin is not None:  # only what is whole for good: a crash before leaves nothing that has to stay
                    await self._disk(self._store.pin, digest, pin)
                await self._announcer.announced(digest)
            except BaseException as error:  # cancelled, too: what nobody asks for any more must not stay pinned
                if newly_pinned and pin is not None:
                    await self._disk(self._store.unpin, digest, pin)
                if isinstance(error, DiskFull | Conflict):
                    await self._disk(self._store.abandon, digest)
                raise
        return digest

    async def _keep_file(self, manifest: Manifest, intake: Intake, path: Path) -> None:
        begun = await self._disk(self._store.begin, manifest, intake)
        self._retract(begun.evicted)
        missing = begun.missing
        while not self.has(manifest.digest):
            await self._disk(put_from_file, self._store.put, manifest, missing, path)
            missing = await self._disk(self._store.vouch, manifest)

    def _retract(self, evicted: Sequence[str]) -> None:
        for digest in evicted:
            self._announcer.retract(digest)

    async def fetch(
        self, digest: str, *, max_bytes: int, deadline_s: float, on_progress: OnProgress | None = None
    ) -> None:
        if self.has(digest):
            self._store.touch(digest)
            return
        shared = self._transfers.get(digest) or self._start(digest)
        waiter = _Waiter(max_bytes, on_progress)
        shared.waiters.append(waiter)
        try:
            async with asyncio.timeout(deadline_s) as deadline:
                await self._outcome(shared, max_bytes)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise DeadlineExceeded(
                f"{digest} was not here after {deadline_s:g} s", fix="Try again: what arrived is kept."
            ) from None
        finally:
            shared.waiters.remove(waiter)
            if not shared.waiters:
                await self._give_up(digest, shared)

    def _start(self, digest: str) -> _Shared:
        shared = self._transfers[digest] = _Shared(asyncio.get_running_loop().create_future())
        transfer = Transfer(
            digest, self._around, limit=shared.limit, on_size=shared.on_size, on_progress=shared.on_progress
        )
        shared.task = self._own(self._transfer(digest, shared, transfer), f"fetch {digest}")
        return shared

    def _own(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _settle(self) -> None:
        """Nobody waits for the disk: a power cut before costs reading the blob once more, or parts of it."""
        try:
            await self._disk(self._store.settle)
        except (Problem, OSError) as error:
            log.error("content-not-settled", error=str(error))

    async def _transfer(self, digest: str, shared: _Shared, transfer: Transfer) -> None:
        self.crowds.joined(digest, self.clock())
        try:
            await transfer.run()
            self.crowds.joined(digest, self.clock())
            self._announcer.announce(digest)
            self._own(self._settle(), f"settle {digest}")
        except BaseException:
            if not self.has(digest):
                self._announcer.retract(digest)
            raise
        finally:
            if self._transfers.get(digest) is shared:
                del self._transfers[digest]

    async def _outcome(self, shared: _Shared, max_bytes: int) -> None:
        task = shared.task
        assert task is not None
        either: set[asyncio.Future[Any]] = {task, shared.sized}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if shared.sized.done() and shared.sized.result() > max_bytes:
            raise TooLarge(f"the content has {shared.sized.result()} bytes; at most {max_bytes} are wanted here")
        await asyncio.wait({task})
        if task.cancelled():
            raise Unavailable("this node is stopping", fix="Try again when it is up.")
        task.result()

    async def _give_up(self, digest: str, shared: _Shared) -> None:
        """The last waiter is gone: nobody needs the transfer. A call that comes now starts a new one."""
        if self._transfers.get(digest) is shared:
            del self._transfers[digest]
        if shared.task is not None:
            shared.task.cancel()
            await asyncio.gather(shared.task, return_exceptions=True)

    @asynccontextmanager
    async def materialized(self, digest: str) -> AsyncIterator[Path]:
        """See `Content.materialized`. Chunks damaged on this disk are fetched again, once; then what `fetch` raises."""
        stack = ExitStack()
        try:
            was_here = self.has(digest)
            try:
                path = await self._disk(stack.enter_context, self._store.materialized(digest))
            except ContentNotFound:
                manifest = await self.manifest(digest)
                if not was_here or manifest is None:
                    raise
                log.warning("damaged-blob-is-fetched-again", digest=digest)
                await self.fetch(digest, max_bytes=manifest.size, deadline_s=_HEAL_S)
                path = await self._disk(stack.enter_context, self._store.materialized(digest))
            self._retract(await self._disk(self._store.evicted_for_copies))
            yield path
        finally:
            await self._disk(stack.close)

    async def pin(self, digest: str, why: str) -> None:
        await self._disk(self._store.pin, digest, why)

    async def unpin(self, digest: str, why: str) -> None:
        await self._disk(self._store.unpin, digest, why)

    async def pinned(self) -> Collection[str]:
        return await self._disk(self._store.pinned)

    async def remove(self, digest: str) -> None:
        """See `Content.remove`. Raises Conflict if it is pinned or in use; nothing happens if it is not here."""
        await self._disk(self._store.remove, digest)
        self._announcer.retract(digest)
