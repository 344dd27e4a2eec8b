"""Many nodes of the real code on a simulated network and virtual time."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from dht.directory import NetworkDirectory
from dht.overlay import Tuning
from dht.overlay.datagrams import Address
from dht.overlay.simulated import SimulatedNetwork
from dht.sealing import MAX_DATAGRAM
from protocol.problems import Unavailable
from tests.dht_mesh import node, service

SEED = int(os.environ.get("SIM_SEED", "20260711"))
TUNING = Tuning(k=8, replicas=6, acks=4)
"""A small k, so that not every node knows and keeps everything."""

pytestmark = [pytest.mark.looptime(noop_cycles=1), pytest.mark.timeout(110)]


class Simulation:
    """Nodes by number; `clock` follows virtual time."""

    def __init__(self, stack: AsyncExitStack, network: SimulatedNetwork) -> None:
        self.network = network
        self.nodes: dict[int, NetworkDirectory] = {}
        self._stack = stack
        self._running: dict[int, AsyncExitStack] = {}
        self._started = time.time() - asyncio.get_running_loop().time()

    def clock(self) -> float:
        return self._started + asyncio.get_running_loop().time()

    async def add(self, number: int, *, through: int | None = None) -> None:
        bootstrap = [] if through is None else [str(address(through))]
        self._running[number] = await self._stack.enter_async_context(AsyncExitStack())
        self.nodes[number] = await self._running[number].enter_async_context(
            node(
                number,
                bootstrap=bootstrap,
                tuning=TUNING,
                clock=self.clock,
                transport=self.network.transport(number),
            )
        )

    async def kill(self, number: int) -> None:
        """Without a word to the others, as by a power cut."""
        self.network.kill(address(number))
        del self.nodes[number]
        await self._running.pop(number).aclose()


def address(number: int) -> Address:
    return Address(f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", 7401)


@asynccontextmanager
async def simulation(*, loss: float) -> AsyncIterator[Simulation]:
    print(f"SIM_SEED={SEED}")
    async with AsyncExitStack() as stack:
        yield Simulation(stack, SimulatedNetwork(seed=SEED, loss=loss))


async def test_80_nodes_with_a_tenth_of_datagrams_lost() -> None:
    chance = random.Random(SEED)
    loop = asyncio.get_running_loop()
    async with simulation(loss=0.1) as sim:
        await sim.add(0)
        for number in range(1, 80):
            await sim.add(number, through=chance.randrange(number))
        signed = [service(f"s{i}", content=str(i)) for i in range(20)]
        slowest = 0.0
        for i, one in enumerate(signed):
            publisher, reader = chance.sample(sorted(sim.nodes), 2)
            began = loop.time()
            await sim.nodes[publisher].publish(one)
            found = await sim.nodes[reader].services(f"id:s{i}")
            slowest = max(slowest, loop.time() - began)
            assert [s.envelope for s in found] == [one.envelope], f"seed {SEED}, service {i}"
        assert slowest < 2.0
        assert sim.network.largest <= MAX_DATAGRAM
        contacts = [n.stats()["contacts"] for n in sim.nodes.values()]
        assert max(contacts) < 79, "every node knows every other: nothing was proven about routing"
        assert all(n.stats()["crashes"] == 0 for n in sim.nodes.values())


async def test_a_cohort_that_joined_through_one_node_survives_the_death_of_the_old_ones() -> None:
    chance = random.Random(SEED)
    async with simulation(loss=0.02) as sim:
        await sim.add(0)
        for number in range(1, 30):
            await sim.add(number, through=0)
        signed = [service(f"s{i}", content=str(i)) for i in range(20)]
        for one in signed:
            await sim.nodes[chance.randrange(30)].publish(one)
        for number in range(30, 60):
            await sim.add(number, through=0)
        await asyncio.sleep(60)
        for number in range(30):
            await sim.kill(number)
        await asyncio.sleep(60)

        answers, unavailable = [], 0
        for i in range(20):
            for _ in range(3):
                try:
                    answers.append(len(await sim.nodes[chance.choice(sorted(sim.nodes))].services(f"id:s{i}")))
                except Unavailable:
                    unavailable += 1
        assert set(answers) == {1}, f"a record was said not to exist, seed {SEED}"
        assert unavailable <= 1, f"{unavailable} of 60, seed {SEED}"


async def test_reads_right_after_a_third_was_killed_are_never_falsely_empty() -> None:
    chance = random.Random(SEED + 1)
    async with simulation(loss=0.0) as sim:
        await sim.add(0)
        for number in range(1, 60):
            await sim.add(number, through=0)
        signed = [service(f"s{i}", content=str(i)) for i in range(20)]
        for one in signed:
            await sim.nodes[chance.randrange(60)].publish(one)
        for number in chance.sample(range(60), 18):
            await sim.kill(number)
        empty = failed = 0
        for i in range(20):
            try:
                empty += not await sim.nodes[chance.choice(sorted(sim.nodes))].services(f"id:s{i}")
            except Unavailable:
                failed += 1
        assert (empty, failed) == (0, 0), f"seed {SEED}"


async def test_records_are_kept_alive_while_their_owner_lives_and_fade_after_it_died() -> None:
    digest = "sha256:" + "c" * 64
    async with simulation(loss=0.0) as sim:
        await sim.add(0)
        for number in range(1, 14):
            await sim.add(number, through=0)
        signed = service("od01", expiry=time.time() + 7200)
        await sim.nodes[1].publish(signed)
        await sim.nodes[1].announce_content(digest)
        await sim.nodes[1].announce_region(region="eu/de", agents=1, memory_total=9, memory_free=9)
        for number in range(2, 12):
            await sim.kill(number)
        await asyncio.sleep(40 * 60)
        reader = sim.nodes[13]
        assert [s.envelope for s in await reader.services("id:od01")] == [signed.envelope]
        assert len(await reader.providers(digest)) == 1
        assert await reader.regions("region:eu/de") == [], "a region that is not announced again fades in a minute"
        await sim.kill(1)
        await asyncio.sleep(35 * 60)
        assert [s.envelope for s in await reader.services("id:od01")] == [signed.envelope], "others hold it"
        assert await reader.providers(digest) == [], "nobody extends what another node announced"
        await asyncio.sleep(60 * 60)
        assert await reader.services("id:od01") == [], "expired for good"
