"""The missing chunks of one manifest on their way here: performs what the picker decides, keeps what arrives."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence

import structlog

from dht.blobs.proof import Proof
from dht.swarm.content_wire import promise_in
from dht.swarm.meeting import Meetings
from dht.swarm.patience import Patience
from dht.swarm.peer_streams import Stream
from dht.swarm.picker import Ask, Effect, Picker
from dht.swarm.sources import Source, Surroundings
from protocol.instances import OnProgress, Progress
from protocol.manifest import Manifest
from protocol.problems import CorruptContent, DiskUnusable, Problem, TooManyRequests, Unavailable
from protocol.records import ProviderRecord

log = structlog.get_logger(__name__)

TICK_S = 0.1
PATIENCE_S = 4.0
"""How long a transfer waits for its providers to come back, or for new ones, when all are of no use."""
ANNOUNCE_FROM = 4
"""Chunks that are here when the transfer begins, from before a restart or of another blob, and are offered at once."""
ANNOUNCE_AFTER_S = 10.0
"""A transfer that takes this long, give or take half, is announced with what it has by then.

Those that fetch at the same moment meet without the directory; sixteen that all write to it and read it cost each other
more time than they save.
"""


class ChunkTransfer:
    """`sources` by node id; `learn` adds some, `find_more` looks for ones that are not among them yet and adds them."""

    def __init__(
        self,
        around: Surroundings,
        sources: dict[str, Source],
        manifest: Manifest,
        missing: Sequence[int],
        learn: Callable[[Iterable[ProviderRecord]], list[Source]],
        find_more: Callable[[], Awaitable[list[Source]]],
        on_progress: OnProgress,
        proof: Proof,
    ) -> None:
        self._around = around
        self._sources = sources
        self._manifest = manifest
        self._missing = missing
        self._on_progress = on_progress
        self._proof = proof
        order = list(missing)
        random.shuffle(order)
        offer = around.directory.offer(manifest.digest)
        assert isinstance(offer.record, ProviderRecord)
        self._picker = Picker({i: manifest.chunks[i].length for i in missing}, order, me=offer.record.node)
        self._wake = asyncio.Event()
        self._reports: deque[Callable[[], None]] = deque()
        self._requests: dict[int, asyncio.Task[None]] = {}
        self._streams: dict[int, tuple[Stream, int]] = {}
        """Of each request: its answer, and how many bytes of it the picker has heard of."""
        self._meetings = Meetings(
            around,
            sources,
            manifest,
            missing,
            self._picker,
            offer.envelope,
            learn=learn,
            find_more=find_more,
            wake=self._wake.set,
        )
        self._sent_away = False
        """A holder said "elsewhere"."""
        self._fatal: Problem | None = None
        self._patience = Patience(around.clock())
        lengths = {c.digest: c.length for c in manifest.chunks}
        self._done = sum(lengths.values()) - sum(manifest.chunks[i].length for i in missing)
        self._total = sum(lengths.values())
        self._announced = len(lengths) - len(missing) >= ANNOUNCE_FROM
        self._announce_at = around.clock() + _jittered(ANNOUNCE_AFTER_S)

    async def run(self) -> None:
        """Raises Unavailable, CorruptContent (all providers lied), DiskUnusable."""
        if self._announced:
            self._around.announcer.announce(self._manifest.digest)
        async with asyncio.TaskGroup() as group:
            meeting = group.create_task(self._meetings.run(), name="meet holders")
            problem = await self._loop(group)
            for task in [meeting, *self._requests.values()]:
                task.cancel()
        for node, why in self._picker.dropped.items():
            log.info("provider-dropped", node=node, digest=self._manifest.digest, why=why)
        now = self._around.clock()
        for node in self._picker.unmet(now):
            self._around.reputation.lagged(node, now)
        if problem is not None:
            raise problem

    async def _loop(self, group: asyncio.TaskGroup) -> Problem | None:
        hopeless_since: float | None = None
        while not self._picker.done:
            now = self._around.clock()
            for request in self._streams:
                self._hear(request, now)
            if self._fatal is not None:
                return self._fatal
            if not self._picker.hopeless or self._meetings.waiting:
                hopeless_since = None
            elif hopeless_since is None:
                hopeless_since = now
            elif now - hopeless_since > PATIENCE_S or self._all_lied():
                return self._gave_up()
            if self._patience.is_over(now):
                problem = self._gave_up()
                for node in self._picker.active:
                    self._around.reputation.lagged(node, now)
                log.warning("transfer-stuck", digest=self._manifest.digest, why=problem.detail)
                return problem
            for effect in self._picker.decide(now):
                self._perform(group, effect)
            await _set_or_late(self._wake, TICK_S)
            self._hear_reports()
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
        troubles = dict.fromkeys(self._picker.active, "next to nothing comes") | self._picker.troubles
        reasons = "; ".join(f"{node[:8]}: {why}" for node, why in troubles.items()) or "no provider answers"
        if self._all_lied():
            return CorruptContent(f"all providers of {self._manifest.digest} lied ({reasons})", fix="Try again later.")
        return Unavailable(
            f"{self._total - self._done} bytes of {self._manifest.digest} are missing ({reasons})",
            fix="Try again: what arrived is kept.",
        )

    # --- requests -------------------------------------------------------------------------------------------------

    async def _request(self, ask: Ask) -> None:
        source, picker, clock = self._sources[ask.provider], self._picker, self._around.clock
        stream = Stream()
        self._streams[ask.request] = (stream, 0)
        try:
            await self._around.client.chunks(
                source.address,
                [self._manifest.chunks[piece] for piece in ask.pieces],
                crowd=None if self._asks_alone() else self._manifest.digest,
                on_chunk=lambda index, data: self._arrived(ask, ask.pieces[index], data),
                on_elsewhere=lambda index: self._sent_elsewhere(ask, ask.pieces[index]),
                stream=stream,
            )
            self._hear_reports()
            self._hear(ask.request, clock())
            picker.finished(ask.request, clock())
        except TooManyRequests as problem:
            self._patience.promised(promise_in(problem))
            picker.busy(ask.request, clock(), _jittered(problem.retry_after or 0.5), problem.detail)
        except CorruptContent as problem:
            self._hear_reports()
            picker.lied(ask.request, problem.detail)
            self._around.reputation.lied(source.node, clock())
            log.warning("provider-lied", node=source.node, digest=self._manifest.digest, why=problem.detail)
        except DiskUnusable as problem:
            self._fatal = problem
        except Problem as problem:
            self._hear_reports()
            source.rotate()
            picker.failed(ask.request, clock(), problem.detail)
            self._around.reputation.lagged(source.node, clock())
        finally:
            self._hear_reports()
            del self._streams[ask.request]
            self._requests.pop(ask.request, None)
            self._wake.set()

    def _asks_alone(self) -> bool:
        """Not as one of a crowd, whom a holder sends elsewhere: nobody is there, or nothing comes from there."""
        return self._sent_away and (not self._meetings.company or self._patience.is_thin(self._around.clock()))

    def _hear(self, request: int, now: float) -> None:
        """Tell the picker what came since it last heard, so that a slow peer is no silent one."""
        stream, heard = self._streams[request]
        received = stream.received
        if received > heard:
            self._streams[request] = (stream, received)
            self._picker.heard(request, received - heard, now)
            self._patience.heard(received - heard, now)

    # --- what arrives: in the thread that reads, then on the loop -----------------------------------------------------

    def _arrived(self, ask: Ask, piece: int, data: memoryview | None) -> None:
        """In a thread: verify and keep a chunk, then report it."""
        if data is None:
            self._reports.append(lambda: self._picker.lacking(ask.request, piece))
            return
        size = len(data)
        chunk = self._manifest.chunks[piece]
        try:
            if self._picker.wants(piece):
                self._around.store.put(chunk.digest, data)
                self._proof.arrived(chunk.digest, data)
        except CorruptContent:
            self._reports.append(lambda: self._around.received.add(ask.provider, "corrupt", size))
            raise
        self._reports.append(lambda: self._kept_one(ask, piece, size))

    def _sent_elsewhere(self, ask: Ask, piece: int) -> None:
        """In a thread."""

        def report() -> None:
            self._sent_away = True
            self._picker.elsewhere(ask.request, piece, self._around.clock())

        self._reports.append(report)

    def _hear_reports(self) -> None:
        """Threads only append to `_reports`: to wake the loop for each chunk would cost as much as to hash it. The loop
        looks when a request ends, and every `TICK_S`."""
        before = self._done
        while self._reports:
            self._reports.popleft()()
        if self._done > before:
            peers = len(self._picker.active)
            message = f"from {peers} peer" + ("s" if peers != 1 else "")
            self._on_progress(Progress("fetch", message, self._done, self._total))

    def _kept_one(self, ask: Ask, piece: int, size: int) -> None:
        fresh = self._picker.delivered(ask.request, piece, self._around.clock())
        self._around.received.add(ask.provider, "chunk" if fresh else "duplicate", size)
        if fresh:
            self._patience.gained(self._around.clock())
            self._done += size
            if not self._announced and self._around.clock() >= self._announce_at:
                self._announced = True
                self._around.announcer.announce(self._manifest.digest)


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
