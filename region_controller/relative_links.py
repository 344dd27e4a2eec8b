"""Keeps the view of other controllers live: every second one small POST to the uplink, and one to another relative.

What is decided, `relatives` decides. The mesh's records name whom to begin with, and again whenever the uplink is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

import msgspec
import structlog

from dht.contracts import Directory
from dht.peer_http import PeerHttp
from protocol.bounded import read_bounded
from protocol.peers import PeerIdentity
from protocol.problems import Forbidden, Problem
from protocol.records import RegionRecord
from region_controller.relatives import RelativesView, Target
from region_controller.summaries import (
    MAX_ANSWER,
    SUMMARIES_PATH,
    Exchange,
    ExchangeAnswer,
    Load,
    Summary,
    decode_answer,
)

log = structlog.get_logger(__name__)

EVERY_S = 1.0
ASK_WITHIN_S = 2.0
LOOK_FIRST_S = 1.0
LOOK_MOST_S = 15.0
"""Between two looks into the mesh's records: soon at first and after a loss, then seldom."""
JITTER = 0.2
GOODBYES = 32
GOODBYE_S = 0.5


class RelativeLinks:
    """`load`: what our own agents could host now. `clock`: monotonic, in s."""

    def __init__(
        self,
        view: RelativesView,
        *,
        load: Callable[[], Load],
        directory: Directory,
        region_records: Callable[[], Awaitable[list[RegionRecord]]],
        http: PeerHttp,
        clock: Callable[[], float],
        chance: random.Random,
    ) -> None:
        self.view = view
        self._load = load
        self._directory = directory
        self._region_records = region_records
        self._http = http
        self._clock = clock
        self._chance = chance
        self._lost = asyncio.Event()
        self._uplinks: frozenset[str] = frozenset()

    def receive(self, exchange: Exchange, peer: PeerIdentity) -> ExchangeAnswer:
        """Raises Forbidden unless `peer` speaks of itself."""
        if (exchange.me.node, exchange.me.region) != (peer.node, peer.region):
            raise Forbidden("a controller sums up itself, under the node id and the region of its certificate")
        now = self._clock()
        self.view.asked(exchange, now)
        return self.view.answer(exchange, self._own(now), now)

    def _own(self, now: float, *, leaving: bool = False) -> Summary:
        return self.view.own(self._load(), tuple(self._directory.addresses), now, leaving=leaving)

    # --- loops ------------------------------------------------------------------------------------------------------

    async def exchange_forever(self) -> None:
        while True:
            await self.exchange_once()
            await asyncio.sleep(EVERY_S * self._chance.uniform(1 - JITTER, 1 + JITTER))

    async def exchange_once(self) -> None:
        """With every uplink and one other relative, at the same time."""
        now = self._clock()
        for node in self.view.sweep(now):
            log.info("relative-gone", node=node)
        uplinks = self.view.uplinks(now)
        self._note_uplinks(uplinks)
        probe = self.view.probe(now)
        await asyncio.gather(*(self._exchange(target) for target in [*uplinks, *([probe] if probe else [])]))

    def _note_uplinks(self, uplinks: list[Target]) -> None:
        nodes = frozenset(t.node for t in uplinks)
        if nodes != self._uplinks:
            log.info("uplink-changed", region=self.view.region, now=[t.region for t in uplinks])
            if self._uplinks - nodes:
                self._lost.set()
            self._uplinks = nodes

    async def _exchange(self, target: Target) -> None:
        asked_at = self._clock()
        question = self.view.question(self._own(asked_at), target, asked_at)
        try:
            answer = await self._ask(target, question)
        except Problem as problem:
            log.debug("relative-silent", node=target.node, region=target.region, problem=problem.detail)
            self.view.failed(target.node, self._clock(), self._chance.uniform(0.5, 1.0))
        else:
            self.view.answered(answer, target, asked_at=asked_at, now=self._clock())

    async def _ask(self, target: Target, question: Exchange) -> ExchangeAnswer:
        """At one of its addresses: a failure makes the next one its first."""
        data = msgspec.msgpack.encode(question)
        async with self._http.request(
            "POST", target.addresses[0], SUMMARIES_PATH, timeout_s=ASK_WITHIN_S, data=data
        ) as response:
            return decode_answer(await read_bounded(response.content.iter_any(), MAX_ANSWER, "the answer"))

    async def look_forever(self) -> None:
        """Meet those whom the mesh's records name: soon after a loss, else seldom."""
        pause_s = LOOK_FIRST_S
        while True:
            await self.look_once()
            self._lost.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s * self._chance.uniform(1 - JITTER, 1 + JITTER)):
                    await self._lost.wait()
                    pause_s = LOOK_FIRST_S
            pause_s = min(LOOK_MOST_S, 2 * pause_s)

    async def look_once(self) -> None:
        try:
            records = await self._region_records()
        except Problem as problem:
            log.info("no-regions-found", problem=problem.detail)
            return
        now = self._clock()
        for record in records:
            self.view.met(record.region, record.node, record.addresses, now)

    async def say_goodbye(self) -> None:
        """Our last word, to the uplinks and to who knows us as theirs; nobody waits for who does not answer."""
        now = self._clock()
        goodbye = Exchange(self._own(now, leaving=True))
        targets = [
            Target(r.node, r.region, r.addresses, wants_all=False) for r in self.view.relatives(now) if r.reachable
        ]
        asks = (self._ask(target, goodbye) for target in targets[:GOODBYES])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                await asyncio.gather(*asks, return_exceptions=True)
