"""One member tries to bury a category under records of throwaway keys."""

from __future__ import annotations

import asyncio
import hashlib
import os

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dht.overlay import Tuning
from protocol.identifiers import record_key
from protocol.records import raw_public_key
from tests.dht_mesh import service
from tests.simulation import Simulation, simulation

SEED = int(os.environ.get("SIM_SEED", "20260712"))
CATEGORY = "category:/text/count"
FAKES = 300
POOL, PASSED_ON = 200, 50
"""Bounds made small, so that the flood need not be large."""
FLOODER = 99

CROWD = 150
"""Rows of a key that is full, in the second test."""

pytestmark = pytest.mark.timeout(110)


def fake(sim: Simulation, number: int) -> bytes:
    key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"throwaway%d" % number).digest())
    now = sim.clock()
    return service(f"z{number}", seq=int((now + 250) * 1000), expiry=now + 300 * 86_400, key=key).envelope


async def real_found(sim: Simulation, number: int) -> int:
    found = await sim.nodes[number].services(CATEGORY)
    return sum(signed.record.id.startswith("real") for signed in found)  # type: ignore[union-attr]


async def test_a_members_flood_of_a_category_buries_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dht.seats.MAX_PER_VIA", POOL)
    monkeypatch.setattr("dht.records.replica.RELAYED_PER_VIA", PASSED_ON)
    async with simulation(seed=SEED, tuning=Tuning(k=8, replicas=6, acks=4)) as sim:
        await sim.add(0)
        for number in range(1, 12):
            await sim.add(number, through=0)
        for i in range(10):
            await sim.anybody().publish(sim.service(f"real{i}"))
        flooder = await sim.add_bare(FLOODER, through=0)
        fakes = [fake(sim, i) for i in range(FAKES)]
        await flooder.store_at([node for node, _ in flooder.contacts()][:8], record_key(CATEGORY), fakes)
        full = [n for n in sim.nodes.values() if n._storage.occupancy(record_key(CATEGORY)).vias[flooder.id] == POOL]
        assert len(full) >= 6, "the flood did not arrive"

        for i in range(10, 20):
            await sim.anybody().publish(sim.service(f"real{i}"))
        for number in (1, 6, 11):
            assert await real_found(sim, number) == 20, f"node {number}, seed {SEED}"
        await sim.add(50, through=3)
        await sim.kill(FLOODER)
        await asyncio.sleep(40 * 60)
        assert await real_found(sim, 50) == 20, f"after handing over and republishing, seed {SEED}"
        assert all(n.stats()["crashes"] == 0 for n in sim.nodes.values())


async def test_at_a_full_key_members_and_publishers_have_equal_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three members fill a key, one of them with a single signing key: who publishes little loses nothing."""
    monkeypatch.setattr("dht.seats.MAX_PER_KEY", CROWD)
    monkeypatch.setattr("dht.seats.MAX_PER_VIA", 100)
    async with simulation(seed=SEED, tuning=Tuning(k=8, replicas=6, acks=4)) as sim:
        await sim.add(0)
        for number in range(1, 9):
            await sim.add(number, through=0)
        for i in range(10):
            await sim.nodes[1].publish(sim.service(f"real{i}"))
        publisher = Ed25519PrivateKey.from_private_bytes(b"f" * 32)
        now = sim.clock()
        floods = [[fake(sim, 1000 * member + i) for i in range(90)] for member in range(2)]
        floods.append(
            [
                service(f"y{i}", seq=int((now + 250) * 1000), expiry=now + 300 * 86_400, key=publisher).envelope
                for i in range(90)
            ]
        )
        for member, flood in enumerate(floods):
            flooder = await sim.add_bare(FLOODER + member, through=0)
            await flooder.store_at([node for node, _ in flooder.contacts()], record_key(CATEGORY), flood)
        await asyncio.sleep(10)
        for i in range(10, 20):
            await sim.nodes[2].publish(sim.service(f"real{i}"))
        await asyncio.sleep(10)

        holders = [n._storage.occupancy(record_key(CATEGORY)) for n in sim.nodes.values()]
        full = [there for there in holders if there.total >= CROWD]
        assert len(full) >= 5, "the floods did not fill the key"
        for there in full:
            largest = there.vias.largest[1]
            assert there.total == CROWD
            assert largest <= CROWD // 3
            assert there.owners[raw_public_key(publisher)] <= largest
        for number in (3, 8):
            assert await real_found(sim, number) == 20, f"node {number}, seed {SEED}"
