"""Iterative lookups from this node's routing table: to the nodes nearest to a key, with or without a question to each.

A lookup always comes back: converged, sufficient where that is enough, or with what it had learned when its time was
over (see `dht.overlay.crawl`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from kademlia.node import Node

from dht.overlay.asking import Asking
from dht.overlay.crawl import Crawl
from dht.overlay.messages import A, AnyAnswer, Find, Nodes, Page, Parts, Request
from dht.overlay.routing import Routing
from dht.overlay.tuning import Tuning
from dht.tasks import OwnedTasks


class Lookups:
    """`counts` of the lookups with a question: `count`, `hops` to the nearest node, `answers`."""

    def __init__(self, own_id: bytes, routing: Routing, asking: Asking, tuning: Tuning, tasks: OwnedTasks) -> None:
        self.counts: Counter[str] = Counter()
        self._own_id = own_id
        self._routing = routing
        self._asking = asking
        self._tuning = tuning
        self._tasks = tasks

    async def find(self, key: bytes) -> Crawl[Nodes]:
        """Who is nearest to the key."""
        crawl = self._crawl(key, Find, Nodes, key)
        await crawl.run(asyncio.get_running_loop().time() + self._tuning.lookup_s)
        return crawl

    async def find_in_two(self, key: bytes) -> tuple[list[Node], Coroutine[Any, Any, list[Node]]]:
        """The first of those nearest to the key, to begin with, and the others, which may have to be waited for."""
        deadline = asyncio.get_running_loop().time() + self._tuning.lookup_s
        crawl = self._crawl(key, Find, Nodes, key)
        await crawl.run(deadline, until_sufficient=True)
        first = crawl.nearest_answered(self._tuning.replicas)

        async def others() -> list[Node]:
            await crawl.run(deadline)
            return [node for node in crawl.nearest_answered(self._tuning.replicas) if node not in first]

        return first, others()

    async def ask_nearest(
        self, key: bytes, deadline: float, request: type[Request], answer: type[A], *args: Any
    ) -> Crawl[A]:
        """Put one question to the nodes nearest to the key, until the answers are sufficient; that nothing is known
        must be said by all that can be reached. `deadline`: in the event loop's time."""
        crawl = self._crawl(key, request, answer, *args)
        await crawl.run(deadline, until_sufficient=True)
        self.counts.update(count=1, hops=crawl.hops, answers=len(crawl.answers))
        return crawl

    def _crawl(self, key: bytes, request: type[Request], answer: type[A], *args: Any) -> Crawl[A]:
        now = asyncio.get_running_loop().time()
        seeds = self._seeds(key, now)
        return Crawl[A](
            key,
            seeds or self._routing.lost_members(),
            self._tuning.policy,
            own_id=self._own_id,
            ask=lambda node: self._asking.ask(node, request, answer, *args),
            usable=lambda node: not self._routing.is_resting(node.id, now),
            missing=self._routing.missing(now),
            patience=self._asking.patience,
            spawn=self._tasks.run,
            telling=_says_something,
        )

    def _seeds(self, key: bytes, now: float) -> list[Node]:
        """Where a lookup begins: the nearest contacts, and the neighbours, who count when nobody nearer answers."""
        nearest = self._routing.closest(key, self._tuning.k)
        known = {node.id: node for node in [*nearest, *self._routing.neighbours(now)]}
        return [node for node in known.values() if not self._routing.is_resting(node.id, now)]


def _says_something(answer: AnyAnswer) -> bool:
    """False for an empty set of records."""
    match answer:
        case Page():
            return bool(answer.envelopes)
        case Parts():
            return bool(answer.parts or answer.positions)
        case _:
            return True
