"""A network in memory: datagrams that are delayed and lost by a seeded chance. For simulations and tests."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from dht.overlay.datagrams import Address, DatagramTransport, OnDatagram, OpenTransport


class SimulatedNetwork:
    """Keeps the promises of `DatagramTransport`, and no more.

    Each datagram is lost with probability `loss`, else delivered after `latency_s` give or take half of it, so that
    datagrams overtake each other; those from an address in `delays` take so many seconds more. The same seed gives the
    same run on virtual time; `trace` is a checksum of all that was sent, by which two runs can be compared.
    """

    def __init__(self, *, seed: int, loss: float = 0.0, latency_s: float = 0.01) -> None:
        self.loss = loss
        self.latency_s = latency_s
        self.delays: dict[Address, float] = {}
        self.counts: Counter[str] = Counter()
        self.largest = 0
        self.trace = 0
        self._random = random.Random(seed)  # noqa: S311 (a simulation must be repeatable)
        self._listeners: dict[Address, OnDatagram] = {}
        self._dead: set[Address] = set()
        self._island: frozenset[Address] = frozenset()

    def transport(self, number: int) -> OpenTransport:
        """The transport of machine `number`, at an address of its own."""
        address = Address(f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", 7401)

        @asynccontextmanager
        async def opened(on_datagram: OnDatagram) -> AsyncIterator[DatagramTransport]:
            self._listeners[address] = on_datagram
            try:
                yield _Port(self, address)
            finally:
                del self._listeners[address]

        return opened

    def kill(self, address: Address) -> None:
        """From now on the machine neither sends nor receives, as after a power cut."""
        self._dead.add(address)

    def cut(self, island: Iterable[Address]) -> None:
        """From now on nothing passes between these machines and the others, until `heal`."""
        self._island = frozenset(island)

    def heal(self) -> None:
        self._island = frozenset()

    def carry(self, datagram: bytes, source: Address, destination: Address) -> None:
        self.counts["sent"] += 1
        self.largest = max(self.largest, len(datagram))
        self.trace = zlib.crc32(datagram, self.trace)
        parted = (source in self._island) != (destination in self._island)
        if self._random.random() < self.loss or source in self._dead or parted:
            self.counts["lost"] += 1
            return
        delay = self.latency_s * self._random.uniform(0.5, 1.5) + self.delays.get(source, 0.0)
        asyncio.get_running_loop().call_later(delay, self._deliver, datagram, source, destination)

    def _deliver(self, datagram: bytes, source: Address, destination: Address) -> None:
        listener = self._listeners.get(destination)
        if listener is None or destination in self._dead:
            self.counts["lost"] += 1
            return
        listener(datagram, source)


class _Port:
    def __init__(self, network: SimulatedNetwork, address: Address) -> None:
        self._network = network
        self.local = address

    def send(self, datagram: bytes, address: Address) -> None:
        self._network.carry(datagram, self.local, address)
