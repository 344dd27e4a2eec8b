"""Reading the set of records at a key: the union of what the nodes nearest to it hold, and who of them holds what.

Nodes whose sets have equal fingerprints are read as one. A set that is known already, by its fingerprint, is not read
again; of any other it is found by comparing with the most similar known one what is lacking here, and only that is
fetched: over HTTP if it is much, in pages if it is little. What arrives is passed on as it came, unjudged; the outcome
says who holds it, and whether what did not arrive can be taken for absent.

Every holder may lie. So a position counts for the node that told of it, and for others of an equal fingerprint only if
what was told in all has that fingerprint; otherwise each of them is read by itself. And nobody's answers keep the
reader from the other holders: all are read at the same time, nobody has more than half of the time that is left for
sending a large set unless all others have the same, and the time ends only when several are here whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from kademlia.node import Node

from dht import ordering
from dht.overlay.asking import Asking
from dht.overlay.crawl import Crawl
from dht.overlay.datagrams import Address
from dht.overlay.gathering import Gathering, Known, Nothing
from dht.overlay.lookups import Lookups
from dht.overlay.messages import Compare, Page, Parts, Records
from dht.overlay.routing import address_of
from dht.overlay.set_reading import LargeSets, WholeSets, read_equal_sets
from dht.overlay.tuning import Tuning
from dht.tasks import OwnedTasks

SEARCHES = 2

Unread: TypeAlias = Callable[[Sequence[bytes]], Collection[bytes]]
"""Of these holders, by node id, those that are not to be read."""
Answers: TypeAlias = Mapping[bytes, Page] | Mapping[bytes, Parts]
"""By node id."""


@dataclass(frozen=True)
class ReadOutcome:
    """`envelopes`, by position, as peers sent them, not judged; `held`, by node id, the positions of what was found to
    be there, among them or known before. `conclusive`: what is not among them does not exist. `whole` false: the sets
    of too few holders are here to their ends to rely on what is."""

    envelopes: Mapping[bytes, bytes] = field(default_factory=dict)
    held: Mapping[bytes, ordering.Places] = field(default_factory=dict)
    conclusive: bool = False
    answered: int = 0
    whole: bool = True


class Reading:
    """`whole_sets` None: large sets are read page by page."""

    def __init__(self, lookups: Lookups, asking: Asking, tuning: Tuning, whole_sets: WholeSets | None) -> None:
        self._lookups = lookups
        self._asking = asking
        self._tuning = tuning
        self._whole_sets = whole_sets
        self._readings = 0

    async def read(self, key: bytes, known: Known | None = None, unread: Unread = lambda _: ()) -> ReadOutcome:
        """What the nodes nearest to `key` hold, without the envelopes that are `known` already. Who is `unread` is not
        asked for what it alone holds.

        The search ends at the lookup deadline, the reading of the sets PAGING_S later. When many nodes died at once, a
        first search may learn little but who is dead: then a second one follows.
        """
        deadline = asyncio.get_running_loop().time() + self._tuning.lookup_s
        gathering = Gathering(known or Nothing())
        crawl: Crawl[Page] | Crawl[Parts]
        for _ in range(SEARCHES):
            if known is None:
                crawl = await self._lookups.ask_nearest(key, deadline, Records, Page, key, None)
            else:
                crawl = await self._lookups.ask_nearest(key, deadline, Compare, Parts, key, *ordering.EVERYWHERE)
            nodes = crawl.nearest_answered(len(crawl.answers))
            whole = await self._read_sets(key, nodes, crawl.answers, gathering, unread)
            if gathering.envelopes or known or (crawl.conclusive and whole) or not crawl.converged:
                break
        conclusive = crawl.conclusive and whole
        return ReadOutcome(gathering.envelopes, gathering.held, conclusive, len(crawl.answers), whole)

    async def _read_sets(
        self, key: bytes, nodes: Sequence[Node], answers: Answers, gathering: Gathering, unread: Unread
    ) -> bool:
        """Read what `nodes`, nearest first, did not tell in their first answers. True if enough sets are here whole:
        then the others have LOOKUP_S left, since a slow or lying holder must not keep the reader."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._tuning.paging_s
        silenced = set(unread([node.id for node in nodes]))
        told_of = still_to_read(nodes, answers, gathering)
        groups = [group for group in told_of if not silenced.issuperset(node.id for node in group)]
        doors = {node.id: door for node in nodes if (door := _door(node, answers[node.id])) is not None}
        self._readings += 1
        large = LargeSets(self._whole_sets, key, doors, until, alone=len(groups) < 2, first=self._readings)
        near = [node.id for node in nodes[: self._tuning.replicas]]
        wanted = self._enough_of(len(near))
        async with OwnedTasks() as tasks:
            reading: set[asyncio.Task[None]] = set()
            for group in groups:
                told = answers[group[0].id]
                if len(reading) == 1 and gathering.lacks_most(told.count):  # then compare with what the first one has
                    await asyncio.wait(reading, timeout=self._tuning.lookup_s)
                reading.add(tasks.run(read_equal_sets(self._asking, large, key, group, told, gathering)))
            while reading and loop.time() < until:
                if gathering.count_read(near) >= wanted:
                    until = min(until, loop.time() + self._tuning.lookup_s)
                _, reading = await asyncio.wait(
                    reading, timeout=until - loop.time(), return_when=asyncio.FIRST_COMPLETED
                )
        return gathering.count_read(near) >= wanted

    def _enough_of(self, near: int) -> int:
        """How many of the nearest nodes that answered it takes to meet every store that had its acks; half of them, if
        few answered."""
        return min(self._tuning.replicas - self._tuning.acks + 1, (near + 1) // 2)


def still_to_read(nodes: Sequence[Node], answers: Answers, gathering: Gathering) -> list[list[Node]]:
    """Take what first answers bring. Those that are not read with that, in groups of equal fingerprints, the largest
    group first."""
    groups: dict[bytes, list[Node]] = {}
    for node in nodes:
        told = answers[node.id]
        if isinstance(told, Page):
            places = gathering.take(told.envelopes)
            if told.next is None:
                gathering.settle([node], ordering.Places(places))
                continue
            gathering.add(node.id, set(places))
        elif (known := gathering.equal_to(told.fingerprint)) is not None:
            gathering.settle([node], known)
            continue
        groups.setdefault(told.fingerprint, []).append(node)
    return sorted(groups.values(), key=len, reverse=True)


def _door(node: Node, told: Page | Parts) -> str | None:
    return str(Address(address_of(node).host, told.door)) if told.door else None
