"""One blob on its way here: providers, manifest, chunks, proof."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence

import structlog

from dht.swarm.chunk_transfer import ChunkTransfer
from dht.swarm.sources import Source, Surroundings, any_address, source_of
from protocol.identifiers import digest_of
from protocol.instances import OnProgress, Progress
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

MAX_SOURCES = 12
"""So many on this machine's own network, and so many elsewhere."""
MANIFESTS_ASKED_AT_ONCE = 3
HEDGE_S = 0.4
"""When none of those asked for the manifest has answered for so long, one more is asked."""
ROUNDS = 4
"""How often damaged chunks are brought again, and how many lying manifests are tried, before giving up."""


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
            proof = store.proof(manifest, missing)
            if missing:
                await self._find_sources()
                await ChunkTransfer(
                    self._around,
                    self._sources,
                    manifest,
                    missing,
                    self._learn_usable,
                    self._find_more,
                    self._on_progress,
                    proof,
                ).run()
            self._on_progress(Progress("verify", "checking the whole", manifest.size, manifest.size))
            try:
                missing = await disk(store.finish, self._digest, proof)
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
        return self._learn_usable(records)

    def _learn_usable(self, records: Iterable[ProviderRecord]) -> list[Source]:
        return self._learn(self._around.reputation.usable(records, self._around.clock()))

    def _learn(self, records: Iterable[ProviderRecord]) -> list[Source]:
        new = [source_of(r, self._around.near) for r in records if r.node not in self._sources]
        random.shuffle(new)
        known = list(self._sources.values())
        welcome: list[Source] = []
        for near in (True, False):
            room = MAX_SOURCES - sum(source.near == near for source in known)
            welcome += [source for source in new if source.near == near][: max(0, room)]
        self._sources.update({s.node: s for s in welcome})
        return welcome

    # --- the manifest ---------------------------------------------------------------------------------------------

    async def _manifest(self) -> Manifest:
        """The one kept here, or the first acceptable one of any provider."""
        kept = await self._around.disk(self._around.store.manifest, self._digest)
        if kept is not None and digest_of(kept.encode()) not in self._refuted and kept.size <= self._limit():
            return kept
        await self._find_sources()
        self._on_progress(
            Progress("fetch", f"asking {len(self._sources)} {'peer' if len(self._sources) == 1 else 'peers'}")
        )
        first = [source for source in self._sources.values() if source.near][:MANIFESTS_ASKED_AT_ONCE]
        waiting = [*first, *sorted((s for s in self._sources.values() if s not in first), key=lambda s: s.near)]
        near = {source.node for source in first}
        asked: dict[asyncio.Task[Manifest | Problem], str] = {}
        problems: list[Problem] = []
        silences = 0
        try:
            while waiting or asked:
                while waiting and len(asked) < manifests_at_once(len(near), silences):
                    source = waiting.pop(0)
                    asked[asyncio.create_task(self._manifest_of(source), name="ask for a manifest")] = source.node
                answered, _ = await asyncio.wait(asked, timeout=HEDGE_S, return_when=asyncio.FIRST_COMPLETED)
                silences += not answered
                for task in answered:
                    near.discard(asked.pop(task))
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
            manifest, source.whole = await any_address(
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


def manifests_at_once(near: int, silences: int) -> int:
    """How many providers to ask. `near`: those on the own network, asked first, that may still answer; `silences`: how
    often nobody answered for `HEDGE_S`."""
    return (near or MANIFESTS_ASKED_AT_ONCE) + silences
