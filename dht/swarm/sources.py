"""Where content may come from, and what all transfers of a node share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from dht.blobs.store import BlobStore
from dht.contracts import Directory
from dht.disk import Disk
from dht.swarm.announcing import Announcer
from dht.swarm.content_client import ContentClient
from dht.swarm.reputation import Reputation
from dht.swarm.traffic import ByteCounts
from protocol.problems import Unavailable
from protocol.records import ProviderRecord

T = TypeVar("T")


@dataclass
class Source:
    """A provider and its addresses, the one to try next first."""

    node: str
    addresses: list[str]
    near: bool = False
    """On this machine's own network, by one of its addresses."""
    whole: bool = False
    vouched: str = ""
    """Digest of the manifest it sent."""

    @property
    def address(self) -> str:
        return self.addresses[0]

    def rotate(self) -> None:
        self.addresses.append(self.addresses.pop(0))


@dataclass(frozen=True)
class Surroundings:
    """What all transfers of a node share."""

    store: BlobStore
    disk: Disk
    directory: Directory
    client: ContentClient
    announcer: Announcer
    clock: Callable[[], float]
    near: Callable[[str], bool] = lambda _: False
    """Whether an address (`host:port`) is on this machine's own network."""
    reputation: Reputation = field(default_factory=Reputation)
    received: ByteCounts = field(default_factory=ByteCounts)


def source_of(record: ProviderRecord, near: Callable[[str], bool]) -> Source:
    """With its near addresses first."""
    addresses = sorted(record.addresses, key=lambda address: not near(address))
    return Source(record.node, addresses, near=near(addresses[0]))


async def any_address(source: Source, ask: Callable[[str], Awaitable[T]]) -> T:
    """The first answer of any of a provider's addresses; the good one is tried first from then on."""
    for attempt in range(len(source.addresses)):
        try:
            return await ask(source.address)
        except Unavailable:
            if attempt == len(source.addresses) - 1:
                raise
            source.rotate()
    raise AssertionError("a provider has at least one address")
