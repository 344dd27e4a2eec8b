"""The missing chunks of one manifest on their way here: performs what the picker decides, keeps what arrives."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

import structlog

from dht.picker import Ask, Effect, Picker
from dht.sources import Source, Surroundings, any_address
from protocol.instances import OnProgress, Progress
from protocol.manifest import Manifest
from protocol.problems import CorruptContent, DiskFull, Problem, TooManyRequests, Unavailable

log = structlog.get_logger(__name__)

TICK_S = 0.1
REFRESH_S = 0.5
PATIENCE_S = 4.0
"""How long a transfer waits for its providers to come back, or for new ones, when all are of no use."""
ANNOUNCE_AFTER = 4
"""Chunks kept before this node offers itself as a partial holder."""


class ChunkTransfer:
    """`sources` by node id; `find_more` looks for ones that are not among them yet and adds them."""

    def __init__(
        self,
        around: Surroundings,
        sources: dict[str, Source],
        manifest: Manifest,
        missing: Sequence[int],
        find_more: Callable[[], Awaitable[list[Source]]],
        on_progress: OnProgress,
    ) -> None:
        self._around = around
        self._sources = sources
        self._manifest = manifest
        self._missing = missing
        self._find_more = find_more
        self._on_progress = on_progress
        order = list(missing)
        random.shuffle(order)
        self._picker = Picker({i: manifest.chunks[i].length for i in missing}, order)
        self._wake = asyncio.Event()
        self._requests: dict[int, asyncio.Task[None]] = {}
        self._joins: dict[str, asyncio.Task[None]] = {}
        self._fatal: Problem | None = None
        self._kept = 0
        lengths = {c.digest: c.length for c in manifest.chunks}
        self._done = sum(lengths.values()) - sum(manifest.chunks[i].length for i in missing)
        self._total = sum(lengths.values())

    async def run(self) -> None:
        """Raises Unavailable, CorruptContent (all providers lied), DiskFull."""
        async with asyncio.TaskGroup() as group:
            for source in list(self._sources.values()):
                self._join(group, source)
            refreshing = group.create_task(self._refresh(group), name="refresh providers")
            problem = await self._loop(group)
            refreshing.cancel()
            for task in [*self._requests.values(), *self._joins.values()]:
                task.cancel()
        for node, why in self._picker.dropped.items():
            log.info("provider-dropped", node=node, digest=self._manifest.digest, why=why)
        if problem is not None:
            raise problem

    async def _loop(self, group: asyncio.TaskGroup) -> Problem | None:
        hopeless_since: float | None = None
        while not self._picker.done:
            now = self._around.clock()
            if self._fatal is not None:
                return self._fatal
            if not self._picker.hopeless or self._joins:
                hopeless_since = None
            elif hopeless_since is None:
                hopeless_since = now
            elif now - hopeless_since > PATIENCE_S or self._all_lied():
                return self._gave_up()
            for effect in self._picker.decide(now):
                self._perform(group, effect)
            await _set_or_late(self._wake, TICK_S)
        return None

    def _perform(self, group: asyncio.TaskGroup, effect: Effect) -> None:
        if isinstance(effect, Ask):
            self._requests[effect.request] = group.create_task(self._request(effect), name="fetch chunks")
        elif task := self._requests.get(effect.request):
            task.cancel()

    def _all_lied(self) -> bool:
        now = self._around.clock()
        return all(self._around.reputation.is_liar(node, now) for node in self._sources)

    def _gave_up(self) -> Problem:
        reasons = (
            "; ".join(f"{node[:8]}: {why}" for node, why in self._picker.troubles.items()) or "no provider answers"
        )
        if self._all_lied():
            return CorruptContent(f"all providers of {self._manifest.digest} lied ({reasons})", fix="Try again later.")
        return Unavailable(
            f"{self._total - self._done} bytes of {self._manifest.digest} are missing ({reasons})",
            fix="Try again: what arrived is kept.",
        )

    # --- sources --------------------------------------------------------------------------------------------------

    def _join(self, group: asyncio.TaskGroup, source: Source) -> None:
        if source.whole:
            self._picker.provide(source.node, None)
        elif source.node not in self._joins:
            self._joins[source.node] = group.create_task(self._learn_have(source), name="ask for chunks held")

    async def _learn_have(self, source: Source) -> None:
        try:
            have = await any_address(source, lambda address: self._around.client.have(address, self._manifest))
            source.whole = len(have) == len(self._manifest.chunks)
            self._picker.provide(source.node, None if source.whole else have)
        except Problem as problem:
            log.debug("provider-does-not-join", node=source.node, why=problem.detail)
        finally:
            self._joins.pop(source.node, None)
            self._wake.set()

    async def _refresh(self, group: asyncio.TaskGroup) -> None:
        """Partial holders hold more by and by, and new ones come."""
        while True:
            await asyncio.sleep(REFRESH_S)
            for source in [s for s in self._sources.values() if not s.whole] + await self._find_more():
                if source.node not in self._picker.dropped:
                    self._join(group, source)

    # --- requests -------------------------------------------------------------------------------------------------

    async def _request(self, ask: Ask) -> None:
        source, picker, clock = self._sources[ask.provider], self._picker, self._around.clock
        try:
            await self._around.client.chunks(
                source.address,
                [self._manifest.chunks[piece] for piece in ask.pieces],
                on_bytes=lambda size: picker.heard(ask.request, size, clock()),
                on_chunk=lambda index, data: self._arrived(ask, ask.pieces[index], data),
            )
            picker.finished(ask.request, clock())
        except TooManyRequests as problem:
            picker.busy(ask.request, clock(), _jittered(problem.retry_after or 0.5))
        except CorruptContent as problem:
            picker.lied(ask.request, problem.detail)
            self._around.reputation.lied(source.node, clock())
            log.warning("provider-lied", node=source.node, digest=self._manifest.digest, why=problem.detail)
        except DiskFull as problem:
            self._fatal = problem
        except Problem as problem:
            source.rotate()
            picker.failed(ask.request, clock(), problem.detail)
            self._around.reputation.lagged(source.node, clock())
        finally:
            self._requests.pop(ask.request, None)
            self._wake.set()

    async def _arrived(self, ask: Ask, piece: int, data: bytes | None) -> None:
        if data is None:
            self._picker.lacking(ask.request, piece)
            return
        try:
            if self._picker.wants(piece):
                await self._around.disk(self._around.store.put, self._manifest.chunks[piece].digest, data)
        except CorruptContent:
            self._around.received.add(ask.provider, "corrupt", len(data))
            raise
        fresh = self._picker.delivered(ask.request, piece, self._around.clock())
        self._around.received.add(ask.provider, "chunk" if fresh else "duplicate", len(data))
        if fresh:
            self._kept += 1
            self._done += len(data)
            peers = len(self._picker.active)
            message = f"from {peers} peer" + ("s" if peers != 1 else "")
            self._on_progress(Progress("fetch", message, self._done, self._total))
            if self._kept == ANNOUNCE_AFTER:
                self._around.announcer.announce(self._manifest.digest)
        self._wake.set()


def _jittered(seconds: float) -> float:
    """Many sites that were told to come back should not come at once."""
    return seconds * random.uniform(0.5, 1.5)  # noqa: S311 - not a secret


async def _set_or_late(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
    event.clear()
