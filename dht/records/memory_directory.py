"""A whole mesh of directories in memory: the same rules as the real one, no sockets, no time passing by itself.

For tests of other parts. `MemoryMesh.unreachable` cuts nodes off: they see only what they hold themselves.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dht import rules
from dht.records.own_records import provider_record, region_record
from protocol.identifiers import check_digest, node_id, record_key
from protocol.problems import InvalidRecord, Unavailable
from protocol.records import ProviderRecord, RegionRecord, ServiceRecord, Signed, raw_public_key, sign

Sets = dict[bytes, list[Signed]]


class MemoryMesh:
    """What all its directories share. `unreachable`: ids of nodes that are cut off at present."""

    def __init__(self) -> None:
        self.sets: Sets = defaultdict(list)
        self.unreachable: set[str] = set()


class MemoryDirectory:
    """`dht.contracts.Directory` for the node `identity`. `clock` gives Unix seconds."""

    def __init__(
        self,
        mesh: MemoryMesh,
        identity: Ed25519PrivateKey,
        addresses: Sequence[str] = ("127.0.0.1:7401",),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.node = node_id(raw_public_key(identity))
        self._mesh = mesh
        self._identity = identity
        self._addresses = tuple(addresses)
        self._clock = clock
        self._own: Sets = defaultdict(list)
        self._announced: set[str] = set()

    @property
    def addresses(self) -> Sequence[str]:
        return self._addresses

    async def publish(self, signed: Signed) -> None:
        record = signed.record
        rules.accept(record, self._clock())
        for name in record.names:
            key = record_key(name)
            if rules.competes_at(key, record) and rules.supersedes(self._held(key), signed):
                raise InvalidRecord(f"the mesh knows a newer record than seq {record.seq}")
        self._spread(signed)
        if self.node in self._mesh.unreachable:
            raise Unavailable("no other node took the record")

    async def services(self, name: str) -> list[Signed]:
        found = self._read(rules.check_name(name, *rules.SERVICE_NAMES))
        return [s for s in found if isinstance(s.record, ServiceRecord)]

    async def providers(self, digest: str) -> list[ProviderRecord]:
        found = [s.record for s in self._read(f"content:{check_digest(digest)}")]
        return [r for r in found if isinstance(r, ProviderRecord) and r.node != self.node]

    async def regions(self, name: str) -> list[RegionRecord]:
        found = self._read(rules.check_name(name, *rules.REGION_NAMES))
        return [s.record for s in found if isinstance(s.record, RegionRecord)]

    async def announce_content(self, digest: str) -> None:
        self._announced.add(check_digest(digest))
        self._say_provider(digest, withdrawn=False)

    async def retract_content(self, digest: str) -> None:
        if digest in self._announced:
            self._announced.discard(digest)
            self._say_provider(digest, withdrawn=True)

    async def announce_region(self, *, region: str, agents: int, memory_total: int, memory_free: int) -> None:
        record = region_record(
            region,
            node=self.node,
            addresses=self._addresses,
            agents=agents,
            memory_total=memory_total,
            memory_free=memory_free,
            seq=self._next_seq(record_key(f"region:{region}")),
            now=self._clock(),
        )
        self._spread(sign(record, self._identity))

    def offer(self, digest: str) -> Signed:
        return self._provider(check_digest(digest), withdrawn=False)

    def _say_provider(self, digest: str, *, withdrawn: bool) -> None:
        self._spread(self._provider(digest, withdrawn=withdrawn))

    def _provider(self, digest: str, *, withdrawn: bool) -> Signed:
        seq = self._next_seq(record_key(f"content:{digest}"))
        record = provider_record(
            digest, node=self.node, addresses=self._addresses, seq=seq, now=self._clock(), withdrawn=withdrawn
        )
        return sign(record, self._identity)

    def _next_seq(self, key: bytes) -> int:
        own = raw_public_key(self._identity)
        said = [s.record.seq for s in self._held(key) if s.public_key == own]
        return rules.next_seq(max(said, default=None), self._clock())

    def _spread(self, signed: Signed) -> None:
        reachable = [self._own] if self.node in self._mesh.unreachable else [self._own, self._mesh.sets]
        record = signed.record
        for sets in reachable:
            older = sets[record_key(f"id:{record.id}")] if isinstance(record, ServiceRecord) else []
            for name in {*record.names, *(name for one in older for name in rules.left_behind(one, signed))}:
                sets[record_key(name)] = rules.merge(sets[record_key(name)], [signed])

    def _held(self, key: bytes) -> list[Signed]:
        shared = [] if self.node in self._mesh.unreachable else self._mesh.sets[key]
        return [s for s in rules.merge(self._own[key], shared) if s.record.expiry > self._clock()]

    def _read(self, name: str) -> list[Signed]:
        key = record_key(name)
        found = [s for s in rules.visible(self._held(key), self._clock()) if rules.bound_to(s.record, key)]
        if not found and self.node in self._mesh.unreachable:
            raise Unavailable(f"0 nodes answered: too few to say that nothing is known as {name[:100]}")
        return found
