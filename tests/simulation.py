"""Many nodes of the real code on a simulated network and virtual time: for the tests and for `bench-lookup-sim`.

Everything random comes from one seed, and the clock is the event loop's: on a loop with virtual time the same seed
gives the same datagrams.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

from dht import ordering
from dht.overlay import Overlay, Tuning, running_overlay
from dht.overlay.answering import Answering
from dht.overlay.datagrams import Address
from dht.overlay.messages import Compare, Find, Records, WireContact, wire_contact
from dht.overlay.simulated import SimulatedNetwork
from dht.records.directory import NetworkDirectory
from protocol.records import Signed
from tests.dht_mesh import KEYRING, ROOT, credentials, identity, node, service

EPOCH = 1_800_000_000.0
"""Unix seconds at the loop's time 0."""


def address(number: int) -> Address:
    return Address(f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", 7401)


class Simulation:
    """Nodes by number. Liars are members too; those who were added as such are not in `nodes`."""

    def __init__(self, stack: AsyncExitStack, *, seed: int, loss: float, tuning: Tuning) -> None:
        self.seed = seed
        self.network = SimulatedNetwork(seed=seed, loss=loss)
        self.chance = random.Random(seed)
        self.nodes: dict[int, NetworkDirectory] = {}
        self.lying: set[int] = set()
        self._tuning = tuning
        self._stack = stack
        self._running: dict[int, AsyncExitStack] = {}

    def clock(self) -> float:
        return EPOCH + asyncio.get_running_loop().time()

    def service(self, service_id: str, *, category: str = "/text/count", lifetime_s: float = 86_400.0) -> Signed:
        now = self.clock()
        return service(service_id, seq=int(now * 1000), content=service_id, category=category, expiry=now + lifetime_s)

    def anybody(self) -> NetworkDirectory:
        """Any node that does not lie."""
        return self.nodes[self.chance.choice([number for number in self.nodes if number not in self.lying])]

    def nearest(self, key: bytes, numbers: Iterable[int]) -> list[int]:
        """These nodes, the nearest to the key first."""
        target = int.from_bytes(key, "big")
        return sorted(numbers, key=lambda number: int(self.nodes[number].node, 16) ^ target)

    def holders(self, key: bytes) -> list[int]:
        """Nodes that keep something at `key`."""
        return [number for number, node in self.nodes.items() if node._storage.at(key)]

    async def add(self, number: int, *, through: int | None = None) -> NetworkDirectory:
        bootstrap = [] if through is None else [str(address(through))]
        self._running[number] = await self._stack.enter_async_context(AsyncExitStack())
        directory = node(
            number,
            bootstrap=bootstrap,
            tuning=self._tuning,
            clock=self.clock,
            transport=self.network.transport(number),
            chance=random.Random(f"{self.seed} {number}"),
        )
        self.nodes[number] = await self._running[number].enter_async_context(directory)
        return self.nodes[number]

    async def add_liar(self, number: int, *, through: int) -> None:
        """A member that takes every record and keeps none, knows of none, and names nodes that do not exist."""
        overlay = await self.add_bare(number, through=through)
        overlay._answering = self._lies(overlay)

    @contextmanager
    def turned(self, numbers: Iterable[int], into: type[Answering] | None = None) -> Iterator[None]:
        """Members that everybody knows lie for the time of the block; `into`: how they answer from what they hold."""
        honest = {number: self.nodes[number]._overlay._answering for number in numbers}
        for number in honest:
            directory = self.nodes[number]
            overlay = directory._overlay
            if into is None:
                overlay._answering = self._lies(overlay)
            else:
                overlay._answering = into(overlay.id, overlay._routing, directory._replica, k=self._tuning.k, door=0)
        self.lying |= honest.keys()
        try:
            yield
        finally:
            self.lying -= honest.keys()
            for number, answering in honest.items():
                self.nodes[number]._overlay._answering = answering

    def _lies(self, overlay: Overlay) -> Answering:
        chance = random.Random(f"{self.seed} lies {overlay.id.hex()}")

        class Lies(Answering):
            def contacts_for(self, request: Find | Records | Compare, count: int) -> tuple[WireContact, ...]:
                """Right beside the key, where nobody is."""
                nobody = [address(10_000_000 + chance.randrange(1000)) for _ in range(count)]
                return tuple(wire_contact(request.key[:4] + chance.randbytes(16), where) for where in nobody)

        return Lies(overlay.id, overlay._routing, SwallowingShelf(), k=self._tuning.k, door=0)

    async def add_bare(self, number: int, *, through: int, admitted: bool = True) -> Overlay:
        """Takes every record and keeps none; what it sends is up to the caller. A member of the overlay, or an id that
        a member made up: it has the mesh key, and no word of the mesh root."""
        key = identity(number)
        self._running[number] = await self._stack.enter_async_context(AsyncExitStack())
        return await self._running[number].enter_async_context(
            running_overlay(
                self.network.transport(number),
                credentials=credentials(key, root=ROOT if admitted else key),
                clock=self.clock,
                keyring=KEYRING,
                shelf=SwallowingShelf(),
                tuning=self._tuning,
                bootstrap=[(address(through).host, address(through).port)],
                on_newcomer=lambda _: None,
                on_return=lambda: None,
                chance=random.Random(f"{self.seed} {number}"),
            )
        )

    async def kill(self, number: int) -> None:
        """Without a word to the others, as by a power cut."""
        self.network.kill(address(number))
        self.nodes.pop(number, None)
        await self._running.pop(number).aclose()


class SwallowingShelf:
    def ordered(self, key: bytes) -> ordering.OrderedSet:
        return ordering.OrderedSet(())

    def offer(self, key: bytes, envelopes: Sequence[bytes], via: bytes) -> list[int]:
        return [0] * len(envelopes)


@asynccontextmanager
async def simulation(*, seed: int, loss: float = 0.0, tuning: Tuning | None = None) -> AsyncIterator[Simulation]:
    """The seed is printed, so that a failing run can be repeated."""
    print(f"SIM_SEED={seed}")
    async with AsyncExitStack() as stack:
        yield Simulation(stack, seed=seed, loss=loss, tuning=tuning or Tuning())
