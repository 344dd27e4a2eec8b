"""One iterative lookup: from the contacts known here to the nodes nearest to a key.

Each candidate is in one of these states: heard of, asked, overdue (no answer after half its timeout: the next one is
asked meanwhile, and this one still counts when it answers), answered, failed. Of the `width` nearest that are neither
failed nor overdue, when all have answered, and a quorum has, the lookup has converged. It is *sufficient* as soon as a
quorum of them has, and one told something: what was stored well is held by one of them, and nobody dead is waited for.
"""

from __future__ import annotations

import asyncio
import heapq
from bisect import insort
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic

from kademlia.node import Node

from dht.overlay.messages import A, Nodes, Page, Parts

SAME_MOMENT_S = 0.001
"""A timer may fire this much before its time; without the allowance the search would spin until it is reached."""


@dataclass(frozen=True)
class CrawlPolicy:
    """`width` nearest must answer; `alpha` asked at once; `quorum` answers before slow ones are left behind."""

    width: int
    alpha: int
    quorum: int


class Crawl(Generic[A]):
    """`ask` puts the question to one node (None: it failed) and `patience` says after how long it is overdue.

    `usable` false: not worth asking now. `missing`: members that would be asked if they had not just gone silent.
    `spawn` starts a task that its owner ends; questions outlive the lookup, so that the dead are noticed.
    `telling` false: an answer that only says that its sender knows of nothing.
    """

    def __init__(
        self,
        key: bytes,
        seeds: list[Node],
        policy: CrawlPolicy,
        *,
        own_id: bytes,
        ask: Callable[[Node], Coroutine[Any, Any, A | None]],
        usable: Callable[[Node], bool],
        missing: Sequence[Node],
        patience: Callable[[Node], float],
        spawn: Callable[[Coroutine[Any, Any, A | None]], asyncio.Task[A | None]],
        telling: Callable[[A], bool],
    ) -> None:
        self._target: int = Node(key).long_id
        self._nearest = sorted(seeds, key=self._distance)
        self.answers: dict[bytes, A] = {}
        self.converged = False
        self.sufficient = False
        self._policy = policy
        self._ask: Callable[[Node], Coroutine[Any, Any, A | None]] = ask
        self._usable = usable
        self._patience = patience
        self._telling: Callable[[A], bool] = telling
        self._told = False
        self._spawn: Callable[[Coroutine[Any, Any, A | None]], asyncio.Task[A | None]] = spawn
        self._heard_of = {own_id, *(node.id for node in (*seeds, *missing))}
        self._depth = {node.id: 1 for node in seeds}
        self._asked: dict[asyncio.Task[A | None], Node] = {}
        self._overdue_at: dict[bytes, float] = {}
        self._silent: dict[bytes, Node] = {node.id: node for node in missing}
        """Nodes that failed, or are not worth asking: what they hold is unknown."""

    async def run(self, deadline: float, *, until_sufficient: bool = False) -> None:
        """Until converged (or sufficient), or until the event loop's time `deadline`. May be called again to go on."""
        loop = asyncio.get_running_loop()
        while (now := loop.time() + SAME_MOMENT_S) < deadline:
            front = self._front(now)
            unanswered = [n for n in front if n.id not in self.answers]
            if not unanswered and (not self._asked or len(self.answers) >= self._policy.quorum):
                self.converged = True
            answered = len(front) - len(unanswered)
            self.sufficient = self.converged or (self._told and answered >= self._policy.quorum)
            if self.converged or (until_sufficient and self.sufficient):
                return
            on_time = sum(self._overdue_at[n.id] > now for n in self._asked.values())
            for node in [n for n in unanswered if n.id not in self._overdue_at][: max(0, self._policy.alpha - on_time)]:
                self._overdue_at[node.id] = now + self._patience(node)
                self._asked[self._spawn(self._ask(node))] = node
            upcoming: list[float] = [
                self._overdue_at[n.id] for n in self._asked.values() if self._overdue_at[n.id] > now
            ]
            done, _ = await asyncio.wait(
                self._asked, timeout=min([deadline, *upcoming]) - loop.time(), return_when=asyncio.FIRST_COMPLETED
            )
            for task in [task for task in self._asked if task in done]:
                self._heard(self._asked.pop(task), task.result())

    def nearest_answered(self, count: int) -> list[Node]:
        """Nodes that answered, nearest to the key first."""
        return list(islice((n for n in self._nearest if n.id in self.answers), count))

    @property
    def hops(self) -> int:
        """How many nodes, one naming the next, led to the nearest one that answered."""
        return max((self._depth[node.id] for node in self.nearest_answered(1)), default=0)

    @property
    def conclusive(self) -> bool:
        """True if what nobody mentioned does not exist: of the `width` nearest nodes known, at least half answered."""
        known = {node.id: node for node in self._nearest} | self._silent
        nearest = heapq.nsmallest(self._policy.width, known.values(), key=self._distance)
        live = sum(node.id in self.answers for node in nearest)
        return self.sufficient and live > 0 and 2 * live >= len(nearest)

    def _distance(self, node: Node) -> int:
        distance: int = node.long_id ^ self._target
        return distance

    def _front(self, now: float) -> list[Node]:
        """The `width` nearest that are neither failed nor overdue."""
        answers, overdue_at = self.answers, self._overdue_at
        on_time = (n for n in self._nearest if n.id in answers or overdue_at.get(n.id, now + 1) > now)
        return list(islice(on_time, self._policy.width))

    def _heard(self, node: Node, answer: A | None) -> None:
        if answer is None:
            self._silent[node.id] = node
            self._nearest.remove(node)
            return
        self.answers[node.id] = answer
        self._told = self._told or self._telling(answer)
        if isinstance(answer, Nodes | Page | Parts):
            for contact in answer.contacts:
                if contact.node not in self._heard_of and (address := contact.address) is not None:
                    self._heard_of.add(contact.node)
                    self._depth[contact.node] = self._depth[node.id] + 1
                    self._mentioned(Node(contact.node, *address))

    def _mentioned(self, node: Node) -> None:
        if self._usable(node):
            insort(self._nearest, node, key=self._distance)
        else:
            self._silent[node.id] = node
