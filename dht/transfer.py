"""One blob on its way here: finds providers and manifest, performs what the picker decides, keeps what arrives."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

from dht.announcing import Announcer
from dht.blobs import BlobStore
from dht.content_client import ContentClient
from dht.contracts import Directory, OnProgress
from dht.disk import Disk
from dht.picker import Ask, Effect, Picker
from dht.reputation import Reputation
from dht.traffic import ByteCounts
from protocol.identifiers import digest_of
from protocol.instances import Progress
from protocol.manifest import Manifest
from protocol.problems import (
    ContentNotFound,
    CorruptContent,
    DiskFull,
    NotFound,
    Problem,
    TooLarge,
    TooManyRequests,
    Unavailable,
)
from protocol.records import ProviderRecord

log = structlog.get_logger(__name__)
T = TypeVar("T")

MAX_SOURCES = 16
MANIFESTS_ASKED_AT_ONCE = 3
ROUNDS = 4
"""How often damaged chunks are brought again, and how many lying manifests are tried, before giving up."""
TICK_S = 0.1
REFRESH_S = 0.5
PATIENCE_S = 4.0
"""How long a transfer waits for its providers to come back, or for new ones, when all are of no use."""
ANNOUNCE_AFTER = 4
"""Chunks kept before this node offers itself as a partial holder."""


@dataclass
class Source:
    """A provider and its addresses, the one to try next first."""

    node: str
    addresses: list[str]
    whole: bool = False
    vouched: str = ""
    """Digest of the manifest it sent."""

    @property
    def address(self) -> str:
        return self.addresses[0]

    def rotate(self) -> None:
        self.addresses.append(self.addresses.pop(0))


@dataclass(frozen=True)
class Surroundings:
    """What all transfers of a node share."""

    store: BlobStore
    disk: Disk
    directory: Directory
    client: ContentClient
    announcer: Announcer
    clock: Callable[[], float]
    reputation: Reputation = field(default_factory=Reputation)
    received: ByteCounts = field(default_factory=ByteCounts)


class Transfer:
    """`limit()`: bytes that may be fetched; `on_size` hears the blob's size once a manifest is accepted."""

    def __init__(
        self,
        digest: str,
        around: Surroundings,
        *,
        limit: Callable[[], int],
        on_size: Callable[[int], None],
        on_progress: OnProgress,
    ) -> None:
        self._digest = digest
        self._around = around
        self._limit = limit
        self._on_size = on_size
        self._on_progress = on_progress
        self._sources: dict[str, Source] = {}
        self._refuted: set[str] = set()

    async def run(self) -> None:
        """Returns when the blob is whole here. Raises what `Content.fetch` does, but for the deadline."""
        store, disk = self._around.store, self._around.disk
        with store.holding(self._digest):
            try:
                for _ in range(ROUNDS):
                    manifest = await self._manifest()
                    if await self._fetch(manifest):
                        return
            except DiskFull:
                await disk(store.abandon, self._digest)
                raise
        raise CorruptContent(f"what peers sent for {self._digest} is never what it promises", fix="Try again later.")

    async def _fetch(self, manifest: Manifest) -> bool:
        """False if the manifest turned out to be a lie."""
        store, disk, announcer = self._around.store, self._around.disk, self._around.announcer
        self._on_size(manifest.size)
        begun = await disk(store.begin, manifest)
        for evicted in begun.evicted:
            announcer.retract(evicted)
        missing = begun.missing
        for _ in range(ROUNDS):
            if missing:
                await self._find_sources()
                await _Swarm(self._around, self._sources, manifest, missing, self._find_more, self._on_progress).run()
            self._on_progress(Progress("verify", "checking the whole", manifest.size, manifest.size))
            try:
                missing = await disk(store.finish, self._digest)
            except CorruptContent:
                await self._refute(manifest)
                return False
            if not missing:
                return True
        raise CorruptContent(f"chunks of {self._digest} are damaged as soon as they are kept", fix="Check the disk.")

    async def _refute(self, manifest: Manifest) -> None:
        lie = digest_of(manifest.encode())
        self._refuted.add(lie)
        await self._around.disk(self._around.store.abandon, self._digest)
        for source in self._sources.values():
            if source.vouched == lie:
                self._shun(source, "its manifest lied")

    def _shun(self, source: Source, why: str) -> None:
        self._around.reputation.lied(source.node, self._around.clock())
        log.warning("provider-lied", node=source.node, digest=self._digest, why=why)

    # --- who has it -----------------------------------------------------------------------------------------------

    async def _find_sources(self) -> None:
        """There are honest sources after this. Raises ContentNotFound, Unavailable, CorruptContent (all lied)."""
        now = self._around.clock()
        self._sources = {n: s for n, s in self._sources.items() if not self._around.reputation.is_liar(n, now)}
        if self._sources:
            return
        records = await self._around.directory.providers(self._digest)
        usable = self._around.reputation.usable(records, now)
        if not records:
            raise ContentNotFound(f"no node offers {self._digest}", fix="Publish it again, or wait for its site.")
        if not usable:
            raise CorruptContent(f"all {len(records)} providers of {self._digest} lied before", fix="Try again later.")
        self._learn(usable)

    async def _find_more(self) -> list[Source]:
        """Sources that were not known yet; none if the directory cannot say."""
        try:
            records = await self._around.directory.providers(self._digest)
        except Problem as problem:
            log.debug("no-more-providers", digest=self._digest, why=problem.detail)
            return []
        return self._learn(self._around.reputation.usable(records, self._around.clock()))

    def _learn(self, records: Iterable[ProviderRecord]) -> list[Source]:
        new = [Source(r.node, list(r.addresses)) for r in records if r.node not in self._sources]
        random.shuffle(new)
        new = new[: MAX_SOURCES - len(self._sources)]
        self._sources.update({s.node: s for s in new})
        return new

    # --- the manifest ---------------------------------------------------------------------------------------------

    async def _manifest(self) -> Manifest:
        """The one kept here, or the first acceptable one of any provider."""
        kept = await self._around.disk(self._around.store.manifest, self._digest)
        if kept is not None and digest_of(kept.encode()) not in self._refuted and kept.size <= self._limit():
            return kept
        await self._find_sources()
        self._on_progress(Progress("fetch", f"asking {len(self._sources)} peers"))
        waiting = list(self._sources.values())
        asked: set[asyncio.Task[Manifest | Problem]] = set()
        problems: list[Problem] = []
        try:
            while waiting or asked:
                while waiting and len(asked) < MANIFESTS_ASKED_AT_ONCE:
                    asked.add(asyncio.create_task(self._manifest_of(waiting.pop(0)), name="ask for a manifest"))
                answered, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                for task in answered:
                    outcome = task.result()
                    if isinstance(outcome, Manifest):
                        return outcome
                    problems.append(outcome)
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        raise self._worst(problems)

    async def _manifest_of(self, source: Source) -> Manifest | Problem:
        try:
            manifest, source.whole = await _any_address(
                source, lambda address: self._around.client.manifest(address, self._digest)
            )
            if digest_of(manifest.encode()) in self._refuted:
                raise CorruptContent("the manifest was refuted before")
        except CorruptContent as problem:
            self._shun(source, problem.detail)
            return problem
        except Problem as problem:
            if not isinstance(problem, NotFound):
                self._around.reputation.lagged(source.node, self._around.clock())
            return problem
        if manifest.size > self._limit():
            return TooLarge(f"{self._digest} has {manifest.size} bytes; at most {self._limit()} are wanted here")
        source.vouched = digest_of(manifest.encode())
        self._around.received.add(source.node, "manifest", len(manifest.encode()))
        return manifest

    def _worst(self, problems: Sequence[Problem]) -> Problem:
        for kind in (TooLarge, CorruptContent, Unavailable, TooManyRequests):
            for problem in problems:
                if isinstance(problem, kind):
                    return problem if kind is not TooManyRequests else Unavailable(problem.detail)
        return ContentNotFound(f"{len(problems)} nodes offered {self._digest} and no longer have it")


class _Swarm:
    """Brings the missing chunks of one manifest from many sources."""

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
        self._joining = 0
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
            for task in self._requests.values():
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
            if not self._picker.hopeless or self._joining:
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
        else:
            self._joining += 1
            group.create_task(self._learn_have(source), name="ask for chunks held")

    async def _learn_have(self, source: Source) -> None:
        try:
            have = await _any_address(source, lambda address: self._around.client.have(address, self._manifest))
            source.whole = len(have) == len(self._manifest.chunks)
            self._picker.provide(source.node, None if source.whole else have)
        except Problem as problem:
            log.debug("provider-does-not-join", node=source.node, why=problem.detail)
        finally:
            self._joining -= 1
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


async def _any_address(source: Source, ask: Callable[[str], Awaitable[T]]) -> T:
    """The first answer of any of a provider's addresses; the good one is tried first from then on."""
    for attempt in range(len(source.addresses)):
        try:
            return await ask(source.address)
        except Unavailable:
            if attempt == len(source.addresses) - 1:
                raise
            source.rotate()
    raise AssertionError("a provider has at least one address")


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
