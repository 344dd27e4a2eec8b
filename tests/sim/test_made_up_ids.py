"""One member answers and sends under many node ids, of which the mesh root never heard."""

from __future__ import annotations

import asyncio
import os

import pytest

from dht.overlay import Tuning
from dht.seats import OWN, UNPROVEN
from protocol.identifiers import record_key
from tests.simulation import simulation

SEED = int(os.environ.get("SIM_SEED", "20261124"))
HONEST, MADE_UP = range(8), range(100, 112)
NAME = "id:od01"

pytestmark = [pytest.mark.looptime(noop_cycles=1), pytest.mark.timeout(110)]


async def test_ids_without_certificates_enter_no_table_and_share_one_seat() -> None:
    async with simulation(seed=SEED, tuning=Tuning(k=8, replicas=6, acks=4)) as sim:
        await sim.add(HONEST[0])
        for number in HONEST[1:]:
            await sim.add(number, through=HONEST[0])
        made_up = [await sim.add_bare(number, through=HONEST[0], admitted=False) for number in MADE_UP]
        await sim.nodes[1].publish(sim.service("od01"))
        for number, overlay in enumerate(made_up):
            await overlay.store(record_key(NAME), [sim.service("od01", category=f"/copy{number}").envelope])
        await asyncio.sleep(20 * 60)

        honest = {bytes.fromhex(node.node) for node in sim.nodes.values()}
        for node in sim.nodes.values():
            assert {contact for contact, _ in node._overlay.contacts()} == honest - {bytes.fromhex(node.node)}
            vias = node._storage.occupancy(record_key(NAME)).vias
            assert sum(vias[via] for via in [*honest, UNPROVEN, OWN]) == vias.total
        for number in HONEST:
            assert await sim.nodes[number].services(NAME), f"node {number}, seed {SEED}"
        assert all(overlay.contacts() for overlay in made_up), "they can ask: the mesh key is theirs"
