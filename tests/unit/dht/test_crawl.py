from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from kademlia.node import Node

from dht.overlay.crawl import Crawl, CrawlPolicy
from dht.overlay.datagrams import Address
from dht.overlay.messages import Nodes, wire_contact
from dht.tasks import OwnedTasks

KEY = bytes(20)
POLICY = CrawlPolicy(width=4, alpha=2, quorum=2)

pytestmark = pytest.mark.looptime


def node_id(number: int) -> bytes:
    return bytes(19) + bytes([number])


def node(number: int) -> Node:
    return Node(node_id(number), "10.0.0.1", number)


class World:
    """Nodes 1, 2, ... at distance 1, 2, ... from the key. Each knows those it is told to; `slow` ones take 0.2 s."""

    def __init__(self, knows: dict[int, Sequence[int]], *, slow: set[int] | None = None) -> None:
        self.knows = knows
        self.slow = slow or set()
        self.asked: list[int] = []

    async def ask(self, peer: Node) -> Nodes | None:
        self.asked.append(peer.port)
        await asyncio.sleep(0.2 if peer.port in self.slow else 0.01)
        if peer.port not in self.knows:
            return None
        contacts = tuple(wire_contact(node_id(n), Address("10.0.0.1", n)) for n in self.knows[peer.port])
        return Nodes(b"i" * 8, peer.id, None, contacts)

    def begin(
        self,
        tasks: OwnedTasks,
        seeds: Sequence[int],
        *,
        resting: Sequence[int] = (),
        missing: Sequence[int] = (),
        telling: bool = True,
    ) -> Crawl[Nodes]:
        return Crawl[Nodes](
            KEY,
            [node(n) for n in seeds],
            POLICY,
            own_id=node_id(99),
            ask=self.ask,
            usable=lambda peer: peer.port not in resting,
            missing=[node(n) for n in missing],
            patience=lambda peer: 0.05,
            telling=lambda _: telling,
            spawn=tasks.run,
        )

    async def crawl(
        self, seeds: Sequence[int], *, resting: Sequence[int] = (), missing: Sequence[int] = (), deadline: float = 2.0
    ) -> Crawl[Nodes]:
        async with OwnedTasks() as tasks:
            crawl = self.begin(tasks, seeds, resting=resting, missing=missing)
            await crawl.run(asyncio.get_running_loop().time() + deadline)
            return crawl


def answered(crawl: Crawl[Nodes]) -> list[int]:
    return [n.port for n in crawl.nearest_answered(9)]


async def test_it_walks_from_far_contacts_to_the_nearest_nodes() -> None:
    world = World({50: [30, 40], 30: [10, 11], 10: [1, 2], 11: [2, 3], 1: [2, 3, 4], 2: [1], 3: [4], 4: [99], 40: []})
    crawl = await world.crawl([50])
    assert answered(crawl)[:4] == [1, 2, 3, 4]
    assert crawl.conclusive
    assert 99 not in world.asked, "it does not ask itself"
    assert len(world.asked) == len(set(world.asked)), "nobody is asked twice"


async def test_slow_nodes_do_not_hold_it_up_once_a_quorum_answered() -> None:
    loop = asyncio.get_running_loop()
    world = World({1: [2, 3], 2: [], 3: [], 4: []}, slow={1})
    began = loop.time()
    crawl = await world.crawl([1, 2, 3, 4])
    assert loop.time() - began < 0.1
    assert answered(crawl) == [2, 3, 4]


async def test_without_a_quorum_it_waits_for_the_slow() -> None:
    crawl = await World({1: [], 2: []}, slow={1, 2}).crawl([1, 2])
    assert answered(crawl) == [1, 2]
    assert crawl.conclusive


async def test_dead_nodes_are_replaced_by_the_next_nearest() -> None:
    crawl = await World({3: [], 4: [], 5: [], 6: []}).crawl([1, 2, 3, 4, 5, 6])
    assert answered(crawl) == [3, 4, 5, 6]
    assert crawl.conclusive, "two of the four nearest answered"


async def test_with_most_of_the_nearest_silent_it_proves_nothing() -> None:
    crawl = await World({4: [], 5: [], 6: []}).crawl([1, 2, 3, 4, 5, 6])
    assert answered(crawl) == [4, 5, 6]
    assert crawl.converged
    assert not crawl.conclusive


@pytest.mark.parametrize("where", ["missing", "resting"])
async def test_members_that_went_silent_lately_count_as_unheard(where: str) -> None:
    world = World({4: [1, 2, 3, 5], 5: []})
    crawl = await (
        world.crawl([4], resting=[1, 2, 3])
        if where == "resting"
        else World({4: [], 5: []}).crawl([4, 5], missing=[1, 2, 3])
    )
    assert answered(crawl) == [4, 5]
    assert not crawl.conclusive


async def test_nobody_to_ask_proves_nothing() -> None:
    assert not (await World({}).crawl([])).conclusive


async def test_the_deadline_ends_it() -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    crawl = await World({1: []}, slow={1}).crawl([1], deadline=0.1)
    assert loop.time() - began == pytest.approx(0.1, abs=0.01)
    assert not crawl.converged


async def test_a_quorum_that_told_something_is_sufficient_and_the_dead_are_not_waited_for() -> None:
    loop = asyncio.get_running_loop()
    world = World({3: [], 4: [], 5: [], 6: []}, slow={1, 2})
    async with OwnedTasks() as tasks:
        crawl = world.begin(tasks, [1, 2, 3, 4, 5, 6])
        began = loop.time()
        await crawl.run(began + 2.0, until_sufficient=True)
        assert loop.time() - began == pytest.approx(0.05 + 0.01, abs=0.005), "two were asked, and both were overdue"
        assert (crawl.sufficient, crawl.converged) == (True, False)
        assert answered(crawl) == [3, 4]
        await crawl.run(began + 2.0)
        assert crawl.converged, "it can go on"
        assert answered(crawl) == [3, 4, 5, 6]


async def test_one_dead_node_among_the_nearest_costs_no_time() -> None:
    loop = asyncio.get_running_loop()
    world = World({1: [2, 3], 3: [], 4: []}, slow={2})
    async with OwnedTasks() as tasks:
        crawl = world.begin(tasks, [1, 2, 3, 4])
        began = loop.time()
        await crawl.run(began + 2.0, until_sufficient=True)
        assert loop.time() - began < 0.03
        assert crawl.conclusive


async def test_that_nothing_is_known_must_be_said_by_all_that_can_be_reached() -> None:
    world = World({1: [], 2: [], 3: [], 4: []})
    async with OwnedTasks() as tasks:
        crawl = world.begin(tasks, [1, 2, 3, 4], telling=False)
        await crawl.run(asyncio.get_running_loop().time() + 2.0, until_sufficient=True)
        assert crawl.converged
        assert answered(crawl) == [1, 2, 3, 4]
