"""Many nodes of the real code on a simulated network and virtual time."""

from __future__ import annotations

import asyncio
import os
from contextlib import AbstractAsyncContextManager

import pytest

from dht.overlay import Tuning
from dht.overlay.sealing import MAX_DATAGRAM
from dht.records.directory import NetworkDirectory
from protocol.identifiers import record_key
from protocol.problems import Unavailable
from tests.simulation import Simulation, address, simulation
from tests.virtual_time import in_virtual_time

SEED = int(os.environ.get("SIM_SEED", "20260711"))
TUNING = Tuning(k=8, replicas=6, acks=4)
"""A small k, so that not every node knows and keeps everything."""

pytestmark = pytest.mark.timeout(110)


def simulated(*, loss: float = 0.0, seed: int = SEED) -> AbstractAsyncContextManager[Simulation]:
    return simulation(seed=seed, loss=loss, tuning=TUNING)


async def test_60_nodes_with_a_tenth_of_datagrams_lost() -> None:
    loop = asyncio.get_running_loop()
    async with simulated(loss=0.1) as sim:
        await sim.add(0)
        for number in range(1, 60):
            await sim.add(number, through=sim.chance.randrange(number))
        signed = [sim.service(f"s{i}") for i in range(20)]
        slowest = 0.0
        for i, one in enumerate(signed):
            publisher, reader = sim.chance.sample(sorted(sim.nodes), 2)
            began = loop.time()
            await sim.nodes[publisher].publish(one)
            found = await sim.nodes[reader].services(f"id:s{i}")
            slowest = max(slowest, loop.time() - began)
            assert [s.envelope for s in found] == [one.envelope], f"seed {SEED}, service {i}"
        assert slowest < 2.0
        assert sim.network.largest <= MAX_DATAGRAM
        contacts = [n.stats()["contacts"] for n in sim.nodes.values()]
        assert sum(count >= 59 for count in contacts) < 6, "nodes know every other: nothing was proven about routing"
        assert all(n.stats()["crashes"] == 0 for n in sim.nodes.values())


async def test_a_cohort_that_joined_through_one_node_survives_the_death_of_the_old_ones() -> None:
    async with simulated(loss=0.02) as sim:
        await sim.add(0)
        for number in range(1, 30):
            await sim.add(number, through=0)
        signed = [sim.service(f"s{i}") for i in range(20)]
        for one in signed:
            await sim.nodes[sim.chance.randrange(30)].publish(one)
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
                    answers.append(len(await sim.nodes[sim.chance.choice(sorted(sim.nodes))].services(f"id:s{i}")))
                except Unavailable:
                    unavailable += 1
        assert set(answers) == {1}, f"a record was said not to exist, seed {SEED}"
        assert unavailable <= 1, f"{unavailable} of 60, seed {SEED}"


async def test_a_store_right_after_a_third_was_killed_goes_on_to_all_replicas_behind_its_acks() -> None:
    async with simulated() as sim:
        await sim.add(0)
        for number in range(1, 40):
            await sim.add(number, through=0)
        for number in sim.chance.sample(range(40), 12):
            await sim.kill(number)
        for i in range(10):
            await sim.anybody().publish(sim.service(f"s{i}"))
        await asyncio.sleep(2 * TUNING.lookup_s)
        holders = [len(sim.holders(record_key(f"id:s{i}"))) for i in range(10)]
        assert min(holders) >= TUNING.replicas, f"{holders}, seed {SEED}"


@pytest.mark.parametrize("share", [0.3, 0.5])
async def test_reads_right_after_many_were_killed_are_never_falsely_empty(share: float) -> None:
    async with simulated() as sim:
        await sim.add(0)
        for number in range(1, 50):
            await sim.add(number, through=0)
        for i in range(20):
            await sim.anybody().publish(sim.service(f"s{i}"))
        for number in sim.chance.sample(range(50), int(share * 50)):
            await sim.kill(number)
        empty = failed = 0
        for i in range(20):
            try:
                empty += not await sim.anybody().services(f"id:s{i}")
            except Unavailable:
                failed += 1
        assert (empty, failed) == (0, 0), f"seed {SEED}"


async def test_records_outlive_a_mesh_in_which_everybody_was_replaced() -> None:
    """Churn: every 10 s one node dies and another one joins, until none of the first is left but the publisher."""
    async with simulated(loss=0.02) as sim:
        await sim.add(0)
        for number in range(1, 24):
            await sim.add(number, through=0)
        for i in range(10):
            await sim.nodes[0].publish(sim.service(f"s{i}"))
        empty = failed = 0
        for number in range(1, 24):
            await sim.kill(number)
            await sim.add(100 + number, through=sim.chance.choice(sorted(sim.nodes)))
            await asyncio.sleep(10)
            try:
                empty += not await sim.anybody().services(f"id:s{number % 10}")
            except Unavailable:
                failed += 1
        assert (empty, failed) == (0, 0), f"seed {SEED}"
        reader = sim.nodes[123]
        await sim.kill(0)
        assert [len(await reader.services(f"id:s{i}")) for i in range(10)] == [1] * 10, f"seed {SEED}"


async def region_is_known(directory: NetworkDirectory) -> bool:
    try:
        return bool(await directory.regions("region:eu/de"))
    except Unavailable:  # two thirds of the mesh are dead, and might be cut off
        return False


async def test_records_are_kept_alive_while_their_owner_lives_and_fade_after_it_died() -> None:
    digest = "sha256:" + "c" * 64
    async with simulated() as sim:
        await sim.add(0)
        for number in range(1, 14):
            await sim.add(number, through=0)
        signed = sim.service("od01", lifetime_s=7200)
        await sim.nodes[1].publish(signed)
        await sim.nodes[1].announce_content(digest)
        await sim.nodes[1].announce_region(region="eu/de", agents=1, memory_total=9, memory_free=9)
        for number in range(2, 12):
            await sim.kill(number)
        await asyncio.sleep(40 * 60)
        reader = sim.nodes[13]
        assert [s.envelope for s in await reader.services("id:od01")] == [signed.envelope]
        assert len(await reader.providers(digest)) == 1
        assert not await region_is_known(reader), "a region that is not announced again fades in a minute"
        await sim.kill(1)
        await asyncio.sleep(35 * 60)
        assert [s.envelope for s in await reader.services("id:od01")] == [signed.envelope], "others hold it"
        assert await reader.providers(digest) == [], "nobody extends what another node announced"
        await asyncio.sleep(60 * 60)
        assert await reader.services("id:od01") == [], "expired for good"


async def small_run(seed: int) -> int:
    async with simulated(loss=0.1, seed=seed) as sim:
        await sim.add(0)
        for number in range(1, 15):
            await sim.add(number, through=sim.chance.randrange(number))
        for i in range(5):
            await sim.anybody().publish(sim.service(f"s{i}"))
            await sim.anybody().services(f"id:s{i}")
        await sim.kill(3)
        await asyncio.sleep(60)
        return sim.network.trace


def test_the_same_seed_gives_the_same_datagrams_byte_for_byte() -> None:
    first = in_virtual_time(small_run(SEED))
    assert in_virtual_time(small_run(SEED)) == first
    assert in_virtual_time(small_run(SEED + 1)) != first


async def found(directory: NetworkDirectory, name: str) -> bool:
    """Whether something is found; an answer of which the directory is not sure counts as no."""
    try:
        return bool(await directory.services(name))
    except Unavailable:
        return False


@pytest.mark.parametrize(("island", "cut_s"), [(1, 120.0), (4, 700.0), (12, 300.0)], ids=["node", "site", "half"])
async def test_what_was_cut_off_goes_on_and_is_one_mesh_again_within_30_seconds(island: int, cut_s: float) -> None:
    async with simulation(seed=SEED, loss=0.02) as sim:
        await sim.add(0)
        for number in range(1, 24):
            await sim.add(number, through=0)
        inside, outside = list(range(24 - island, 24)), list(range(24 - island))
        await sim.nodes[inside[0]].publish(sim.service("known"))
        await asyncio.sleep(30)
        sim.network.cut(address(n) for n in inside)
        await asyncio.sleep(cut_s / 2)

        for number in inside:
            assert await found(sim.nodes[number], "id:known"), "published here: it must go on without the others"
        if island < 12:  # half a mesh cannot tell whether the other half is cut off or dead
            with pytest.raises(Unavailable):
                await sim.nodes[inside[0]].services("id:never-heard-of")
        try:
            await sim.nodes[inside[0]].publish(sim.service("from-inside"))
        except Unavailable:
            assert island == 1, "the others of the island could have taken it"
        await sim.nodes[outside[3]].publish(sim.service("from-outside"))
        await asyncio.sleep(cut_s / 2)

        sim.network.heal()
        await asyncio.sleep(30)
        for number in inside:
            assert await found(sim.nodes[number], "id:from-outside"), f"node {number}, seed {SEED}"
        seen = [await found(sim.nodes[number], "id:from-inside") for number in outside]
        assert all(seen), f"seed {SEED}"


@pytest.mark.parametrize("cut_after_s", [0.0, 0.05])
async def test_an_uplink_that_is_cut_in_the_midst_of_publishing_costs_nothing_but_the_wait(cut_after_s: float) -> None:
    """Whatever the publisher is told, the service is found inside at once, and everywhere once the uplink is back."""
    async with simulation(seed=SEED) as sim:
        await sim.add(0)
        for number in range(1, 16):
            await sim.add(number, through=0)
        publishing = asyncio.create_task(sim.nodes[15].publish(sim.service("s")))
        await asyncio.sleep(cut_after_s)
        sim.network.cut([address(14), address(15)])
        await asyncio.gather(publishing, return_exceptions=True)
        if not publishing.cancelled() and (problem := publishing.exception()) is not None:
            assert isinstance(problem, Unavailable)
        assert await found(sim.nodes[15], "id:s")
        await asyncio.sleep(60)
        sim.network.heal()
        await asyncio.sleep(30)
        for name in ("id:s", "category:/text", "category:/"):
            seen = [await found(sim.nodes[number], name) for number in range(16)]
            assert all(seen), f"{name}, seed {SEED}"


async def test_liars_hide_nothing_that_honest_nodes_hold() -> None:
    """Some joined as liars, others turned: their records are gone, and everybody knows them."""
    async with simulated() as sim:
        await sim.add(0)
        for number in range(1, 40):
            if number % 10 == 0:
                await sim.add_liar(number, through=0)
            else:
                await sim.add(number, through=0)
        for i in range(10):
            await sim.anybody().publish(sim.service(f"s{i}"))
        loop = asyncio.get_running_loop()
        slowest = 0.0
        with sim.turned(range(5, 40, 10)):
            for i in range(20):
                if i >= 10:
                    await sim.anybody().publish(sim.service(f"s{i}"))
                began = loop.time()
                assert len(await sim.anybody().services(f"id:s{i}")) == 1, f"seed {SEED}, service {i}"
                slowest = max(slowest, loop.time() - began)
        assert slowest <= TUNING.lookup_s + 0.1
        assert all(n.stats()["crashes"] == 0 for n in sim.nodes.values())
