"""Two machines of one site in a mesh so large that neither has a place in the other's table, and a cut uplink."""

from __future__ import annotations

import asyncio
import contextlib
import os

import pytest

from dht.overlay import Tuning
from dht.records.directory import NetworkDirectory
from protocol.problems import Unavailable
from tests.simulation import address, simulation

SEED = int(os.environ.get("SIM_SEED", "20261124"))
RETRIES = 4

pytestmark = [pytest.mark.looptime(noop_cycles=1), pytest.mark.timeout(110)]


def knows(one: NetworkDirectory, other: NetworkDirectory) -> bool:
    return other.node in {node.hex() for node, _ in one._overlay.contacts()}


async def finds(node: NetworkDirectory, name: str) -> bool:
    for _ in range(RETRIES):
        try:
            return bool(await node.services(name))
        except Unavailable:
            continue
    return False


@pytest.mark.parametrize("met", [True, False])
async def test_neighbours_have_each_other_when_the_uplink_is_cut(met: bool) -> None:
    async with simulation(seed=SEED, tuning=Tuning(k=3, replicas=3, acks=2)) as sim:
        await sim.add(0)
        for number in range(1, 40):
            await sim.add(number, through=sim.chance.randrange(number))
        pairs = [(a, b) for a in range(20, 40) for b in range(a) if not knows(sim.nodes[a], sim.nodes[b])]
        one, other = next((a, b) for a, b in pairs if not knows(sim.nodes[b], sim.nodes[a]))
        if met:
            sim.nodes[one].meet(sim.nodes[other].node, str(address(other)))
            await asyncio.sleep(1)
        sim.network.cut([address(one), address(other)])
        with contextlib.suppress(Unavailable):  # nobody else may have taken it: it is kept all the same
            await sim.nodes[other].publish(sim.service("od01"))
        assert await finds(sim.nodes[one], "id:od01") is met, f"seed {SEED}"


async def test_who_parted_is_asked_no_more_and_who_cannot_prove_it_never() -> None:
    async with simulation(seed=SEED) as sim:
        one, other = await sim.add(0), await sim.add(1)
        await sim.add_bare(2, through=0, admitted=False)
        for number, claimed in ((1, other.node), (2, "ab" * 20)):
            one.meet(claimed, str(address(number)))
        await asyncio.sleep(60)
        routing, now = one._overlay._routing, asyncio.get_running_loop().time()
        assert [n.id.hex() for n in routing.neighbours(now)] == [other.node]
        one.part(other.node)
        assert routing.neighbours(now) == []
