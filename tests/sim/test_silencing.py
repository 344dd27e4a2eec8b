"""A member forges datagrams of another, source address and nonce included, so that its real ones look like replays."""

from __future__ import annotations

import asyncio
import os
from collections import Counter

import pytest

from dht.overlay.datagrams import Address
from dht.overlay.endpoint import Peer
from dht.overlay.messages import Ping, Pong, encode
from dht.overlay.sealing import COUNTER_LIMIT, Sealer
from tests.dht_mesh import KEYRING
from tests.simulation import Simulation, address, simulation

SEED = int(os.environ.get("SIM_SEED", "20261125"))
VICTIM, PEER, FORGER = 0, 1, 2

pytestmark = [pytest.mark.looptime(noop_cycles=1), pytest.mark.timeout(60)]


class Wire:
    """Notes the last datagram on each way, as who can read the path does."""

    def __init__(self, sim: Simulation) -> None:
        self._carry = sim.network.carry
        self.last: dict[tuple[Address, Address], bytes] = {}
        self.counts: Counter[tuple[Address, Address]] = Counter()
        sim.network.carry = self  # type: ignore[method-assign]

    def __call__(self, datagram: bytes, source: Address, destination: Address) -> None:
        self.last[source, destination] = datagram
        self.counts[source, destination] += 1
        self._carry(datagram, source, destination)

    async def forge(self, known: bytes, sender: bytes, source: Address, destination: Address) -> None:
        """A ping in the name of `sender`, with the prefix of a known datagram and the highest counter there is."""

        def drawn(count: int) -> bytes:
            return known[2:][:count]

        sealer = Sealer(KEYRING, random=drawn)
        sealer._nonces[destination] = drawn(10), COUNTER_LIMIT - 1
        ping = Ping(b"forgery!", sender, False)
        self._carry(sealer.seal(encode(ping), destination), source, destination)
        await asyncio.sleep(0.1)


async def pinged(sim: Simulation, wire: Wire) -> tuple[bool, int]:
    """Whether the peer answers the victim, and at which sending."""
    way = address(VICTIM), address(PEER)
    victim, peer, before = sim.nodes[VICTIM], sim.nodes[PEER], wire.counts[way]
    answer = await victim._overlay._asking.call(Peer(peer._overlay.id, address(PEER)), Ping, Pong)
    return answer is not None, wire.counts[way] - before


@pytest.mark.parametrize("source", [VICTIM, FORGER], ids=["spoofed source", "own source"])
async def test_what_a_member_is_sent_does_not_tell_it_how_to_silence_the_sender_elsewhere(source: int) -> None:
    async with simulation(seed=SEED) as sim:
        for number in (VICTIM, PEER, FORGER):
            await sim.add(number, through=None if number == VICTIM else VICTIM)
        await asyncio.sleep(60)
        wire = Wire(sim)
        await sim.nodes[VICTIM]._overlay._asking.call(Peer(None, address(FORGER)), Ping, Pong)
        seen = wire.last[address(VICTIM), address(FORGER)]
        await wire.forge(seen, sim.nodes[VICTIM]._overlay.id, address(source), address(PEER))
        assert await pinged(sim, wire) == (True, 1), f"seed {SEED}"


async def test_who_reads_the_path_delays_a_request_and_silences_nobody() -> None:
    async with simulation(seed=SEED) as sim:
        for number in (VICTIM, PEER):
            await sim.add(number, through=None if number == VICTIM else VICTIM)
        await asyncio.sleep(60)
        wire = Wire(sim)
        assert await pinged(sim, wire) == (True, 1)
        there, back = (address(VICTIM), address(PEER)), (address(PEER), address(VICTIM))
        await wire.forge(wire.last[there], sim.nodes[VICTIM]._overlay.id, *there)
        assert await pinged(sim, wire) == (True, 2), "the first sending looks like a replay, the second does not"
        assert await pinged(sim, wire) == (True, 1), "nothing of it lasts"
        await wire.forge(wire.last[back], sim.nodes[PEER]._overlay.id, *back)
        assert await pinged(sim, wire) == (True, 1), "answers are known by what they answer"


async def test_a_recorded_request_is_answered_to_nobody() -> None:
    async with simulation(seed=SEED) as sim:
        for number in (VICTIM, PEER):
            await sim.add(number, through=None if number == VICTIM else VICTIM)
        wire = Wire(sim)
        assert (await pinged(sim, wire))[0]
        recorded, before = wire.last[address(VICTIM), address(PEER)], sim.nodes[PEER].stats()["datagrams_requests"]
        for source in (VICTIM, 77, 78):
            wire._carry(recorded, address(source), address(PEER))
        await asyncio.sleep(1)
        stats = sim.nodes[PEER].stats()
        assert stats["datagrams_replayed"] == 3
        assert stats["datagrams_requests"] == before
