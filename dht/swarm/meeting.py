"""One fetch among others that fetch the same blob: telling holders what is here, hearing of others."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence

import structlog

from dht.swarm.crowd_wire import Heard, encode_told
from dht.swarm.offers import offer_of
from dht.swarm.picker import Picker
from dht.swarm.sources import Source, Surroundings, any_address
from protocol.manifest import Manifest
from protocol.problems import InvalidRecord, Problem
from protocol.records import ProviderRecord

log = structlog.get_logger(__name__)

MEET_S = 0.4
NO_NEWS_S = 2.0
"""Without news, holders are met this often: they may have some."""
REDRAW = 0.1
"""The chance that a meeting is with another holder than the one before."""
MET_NEAR = 2
"""So many neighbours that are waited for are met at once."""
FIND_S = 8.0
FIND_SOON_S = 1.0
"""How often the directory is asked for more providers: while anybody is of use, and when nobody is."""


class Meetings:
    """`offer`: this node's own, to hand out. `learn` adds providers to `sources` and returns those that are new;
    `find_more` asks the directory for them.

    Every `MEET_S` in which something came, one holder of the whole and one partial holder are told what is here, and
    tell what they have, what they would send elsewhere, and whom they heard of; neighbours from which something is
    awaited, whether or not anything came. A new source is met at once; the picker expects one that is near.
    """

    def __init__(
        self,
        around: Surroundings,
        sources: dict[str, Source],
        manifest: Manifest,
        missing: Sequence[int],
        picker: Picker,
        offer: bytes,
        *,
        learn: Callable[[Iterable[ProviderRecord]], list[Source]],
        find_more: Callable[[], Awaitable[list[Source]]],
        wake: Callable[[], None],
    ) -> None:
        self._around = around
        self._sources = sources
        self._manifest = manifest
        self._missing = missing
        self._picker = picker
        self._learn = learn
        self._find_more = find_more
        self._wake = wake
        self._offer = offer
        self._node_of: dict[bytes, str] = {}
        self._held: dict[str, set[int]] = {}
        self._elsewhere: dict[str, set[int]] = {}
        self._met: set[str] = set()
        """Partial holders that answered."""
        self._partners: set[str] = set()
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._told_left = len(missing)
        """Chunks that were missing here at the last meeting."""

    @property
    def waiting(self) -> bool:
        """Whether an answer is awaited that may bring a source."""
        return bool(self._under_way)

    @property
    def company(self) -> bool:
        """Whether another that fetches has answered, so that a holder may send this node to it."""
        return bool(self._met)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for source in list(self._sources.values()):
                if source.whole:
                    self._picker.provide(source.node, None, near=source.near)
                self._meet(group, source)
            self._wake()
            looked = met = self._around.clock()
            while True:
                await asyncio.sleep(MEET_S * random.uniform(0.75, 1.25))  # noqa: S311 - spreads load
                left = self._picker.left
                if left < self._told_left or self._around.clock() - met > NO_NEWS_S:
                    self._told_left, met = left, self._around.clock()
                    for source in self._turn():
                        self._meet(group, source)
                else:
                    for source in self._awaited():
                        self._meet(group, source)
                if self._around.clock() - looked > (FIND_SOON_S if self._picker.hopeless else FIND_S):
                    looked = self._around.clock()
                    for source in await self._find_more():
                        self._meet(group, source)

    def _turn(self) -> list[Source]:
        """One holder of the whole and one partial holder; those never heard of, all; neighbours that are waited for.

        The first two are drawn at random and mostly kept: each new one costs a connection.
        """
        dropped = self._picker.dropped
        live = [s for s in self._sources.values() if s.node not in dropped]
        unheard = [s for s in live if not s.whole and s.node not in self._held]
        kinds = [s for s in live if s.whole], [s for s in live if not s.whole and s.node in self._held]
        kept = [[s for s in kind if s.node in self._partners and random.random() > REDRAW] for kind in kinds]  # noqa: S311
        drawn = [random.choice(old or kind) for old, kind in zip(kept, kinds, strict=True) if kind]  # noqa: S311
        self._partners = {s.node for s in drawn}
        return unheard + drawn + [s for s in self._awaited() if s not in drawn]

    def _awaited(self) -> list[Source]:
        """Some of the neighbours that are about to bring something."""
        nodes = list(self._picker.awaited)
        return [self._sources[node] for node in random.sample(nodes, min(MET_NEAR, len(nodes)))]

    def _meet(self, group: asyncio.TaskGroup, source: Source) -> None:
        if source.node not in self._under_way:
            if source.near:
                self._picker.expect(source.node, self._around.clock())
            self._under_way[source.node] = group.create_task(self._meeting(group, source), name="meet a holder")

    async def _meeting(self, group: asyncio.TaskGroup, source: Source) -> None:
        wanted = {self._manifest.chunks[i].digest for i in self._missing if self._picker.wants(i)}
        told = encode_told(self._manifest, [c.digest not in wanted for c in self._manifest.chunks], self._offer)
        try:
            heard = await any_address(source, lambda address: self._around.client.meet(address, self._manifest, told))
        except Problem as problem:
            log.debug("provider-not-met", node=source.node, why=problem.detail)
            self._picker.missed(source.node)
        else:
            self._hear(group, source, heard)
        finally:
            self._under_way.pop(source.node, None)
            self._wake()

    def _hear(self, group: asyncio.TaskGroup, source: Source, heard: Heard) -> None:
        if len(heard.held) == len(self._manifest.chunks):
            source.whole = True
            self._picker.provide(source.node, None, near=source.near)
        else:
            self._met.add(source.node)
            self._holds(source, heard.held)
        self._elsewhere[source.node] = heard.elsewhere
        self._picker.given(set().union(*self._elsewhere.values()))
        for envelope, held in heard.others:
            node = self._introduced(envelope)
            if node is None:
                continue
            known = self._sources.get(node)
            if known is not None and not known.whole:
                self._holds(known, held, fetches=True)

    def _holds(self, source: Source, held: set[int], *, fetches: bool = False) -> None:
        """What was heard at second hand may be older than what is known: holders only gain chunks, as a rule."""
        known = self._held.setdefault(source.node, set())
        if held - known or not known:
            known |= held
            self._picker.provide(source.node, known, near=source.near, fetches=fetches)

    def _introduced(self, envelope: bytes) -> str | None:
        """The node whose offer this is, which is a source now unless there are enough."""
        if envelope not in self._node_of:
            try:
                record = offer_of(envelope, self._manifest.digest, time.time())
            except InvalidRecord as problem:
                log.debug("introduction-refused", why=problem.detail)
                return None
            self._node_of[envelope] = record.node
            self._learn([record])
        return self._node_of[envelope]
