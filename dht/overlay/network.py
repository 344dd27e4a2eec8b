"""The overlay of one node: join, look up, store and read sets of records at keys, and answer others who do.

It knows keys and envelopes as bytes; what may stand where is decided by the `Shelf` it is given. This module puts the
parts together: `asking`, `lookups`, `storing`, `reading`, `answering` and `membership` over one routing table.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from dht.overlay.answering import Answering, Shelf
from dht.overlay.asking import Asking
from dht.overlay.datagrams import Address, DatagramTransport, OpenTransport
from dht.overlay.endpoint import Endpoint, Peer
from dht.overlay.gathering import Known
from dht.overlay.lookups import Lookups
from dht.overlay.membership import Membership
from dht.overlay.messages import AnyAnswer, AnyRequest, Proof
from dht.overlay.reading import Reading, ReadOutcome, Unread
from dht.overlay.routing import Routing, address_of
from dht.overlay.sealing import Keyring, Sealer
from dht.overlay.set_reading import WholeSets
from dht.overlay.storing import StoreOutcome, Storing
from dht.overlay.tuning import Tuning
from dht.tasks import OwnedTasks
from protocol.admission import Credentials


class Overlay:
    """Made by `running_overlay`. All methods run in its event loop; none raises for what peers do or fail to do."""

    def __init__(
        self,
        *,
        credentials: Credentials,
        clock: Callable[[], float],
        keyring: Keyring,
        shelf: Shelf,
        tuning: Tuning,
        tasks: OwnedTasks,
        on_newcomer: Callable[[bytes], None],
        on_return: Callable[[], None],
        chance: random.Random,
        door: int,
        whole_sets: WholeSets | None,
    ) -> None:
        self._sealer = Sealer(keyring, random=chance.randbytes)
        self._endpoint = Endpoint(
            credentials=credentials,
            clock=clock,
            mesh=keyring.mesh,
            sealer=self._sealer,
            serve=self._serve,
            on_late=self._heard_late,
            fresh_bytes=chance.randbytes,
        )
        self.id = self._endpoint.id
        self.address = Address("", 0)
        self._tuning = tuning
        self._tasks = tasks
        self._routing = Routing(self.id, tuning.k)
        self._answering = Answering(self.id, self._routing, shelf, k=tuning.k, door=door)
        self._asking = Asking(
            self._endpoint, self._routing, tasks, on_newcomer=on_newcomer, on_back=self._member_came_back
        )
        self._lookups = Lookups(self.id, self._routing, self._asking, tuning, tasks)
        self._storing = Storing(self._asking, tuning.acks, tasks)
        self._reading = Reading(self._lookups, self._asking, tuning, whole_sets)
        self._membership = Membership(
            self.id,
            self._routing,
            self._asking,
            self._lookups,
            on_return=on_return,
            own_address=lambda: self.address,
            chance=chance,
        )

    def attach(self, transport: DatagramTransport) -> None:
        self.address = transport.local
        self._endpoint.attach(transport)

    def received(self, datagram: bytes, address: Address) -> None:
        self._endpoint.received(datagram, address)

    def use_credentials(self, credentials: Credentials) -> None:
        """Show others from now on; of the same key, since the node id does not change."""
        self._endpoint.credentials = credentials

    def use_keyring(self, keyring: Keyring) -> None:
        self._sealer.use(keyring)

    # --- membership ---

    @property
    def alone(self) -> bool:
        """True if no other node is known to exist: then this node's own records are the whole truth."""
        return self._membership.alone

    @property
    def connected(self) -> bool:
        return self._membership.connected

    def add_bootstrap(self, addresses: Sequence[tuple[str, int]]) -> None:
        """Addresses at which members may be found, asked whenever this node knows nobody."""
        self._membership.add_bootstrap(addresses)

    def meet(self, node_id: bytes, address: Address) -> None:
        """See `Membership.meet`."""
        self._membership.meet(node_id, address)

    def part(self, node_id: bytes) -> None:
        self._membership.part(node_id)

    async def join(self) -> bool:
        """Ask all bootstrap addresses at once, then fill the routing table. True if anybody answered."""
        return await self._membership.join()

    async def maintain(self) -> None:
        """Rejoin when alone, ask lost members again, refresh the table. Runs until cancelled."""
        await self._membership.maintain()

    def contacts(self) -> list[tuple[bytes, Address]]:
        """Node id and address of every live contact, nearest first."""
        return [(n.id, address_of(n)) for n in self._routing.closest(self.id, len(self._routing) or 1)]

    def nearest_contacts(self, key: bytes, count: int) -> list[bytes]:
        """Ids of the contacts nearest to a key, from the routing table alone."""
        return [n.id for n in self._routing.closest(key, count)]

    # --- records ---

    async def store(self, key: bytes, envelopes: Sequence[bytes]) -> StoreOutcome:
        """Hand records to the nodes nearest to `key`. Returns at enough acks; the slower ones are told all the same."""
        first, others = await self._lookups.find_in_two(key)
        return await self._storing.store_at(first, key, envelopes, others)

    async def store_at(self, node_ids: Sequence[bytes], key: bytes, envelopes: Sequence[bytes]) -> StoreOutcome:
        """Hand records to certain contacts."""
        nodes = [node for node_id in node_ids if (node := self._routing.table.get(node_id)) is not None]
        return await self._storing.store_at(nodes, key, envelopes)

    async def read(self, key: bytes, known: Known | None = None, unread: Unread = lambda _: ()) -> ReadOutcome:
        """See `Reading.read`."""
        return await self._reading.read(key, known, unread)

    # --- what others cause ---

    def _serve(self, request: AnyRequest, address: Address, proof: Proof | None) -> AnyAnswer | None:
        proven = self._asking.asked_by(request.sender, address)
        return self._answering.answer(request, proof, proven=proven)

    def _heard_late(self, peer: Peer) -> None:
        self._asking.heard(peer)

    def _member_came_back(self) -> None:
        self._membership.came_back()

    def stats(self) -> dict[str, float]:
        return {
            "contacts": len(self._routing),
            "lost_members": len(self._routing.lost_members()),
            "tasks": len(self._tasks),
            "crashes": self._tasks.crashes,
            **{f"lookups_{name}": count for name, count in self._lookups.counts.items()},
            **{f"datagrams_{name}": count for name, count in self._endpoint.counts.items()},
        }


@asynccontextmanager
async def running_overlay(
    open_transport: OpenTransport,
    *,
    credentials: Credentials,
    clock: Callable[[], float],
    keyring: Keyring,
    shelf: Shelf,
    tuning: Tuning,
    bootstrap: Sequence[tuple[str, int]],
    on_newcomer: Callable[[bytes], None],
    on_return: Callable[[], None],
    chance: random.Random,
    door: int = 0,
    whole_sets: WholeSets | None = None,
) -> AsyncIterator[Overlay]:
    """A member of the overlay that tried once to join, and keeps trying. Raises PortTaken or ConfigError.

    `clock`: Unix s. `on_newcomer` hears the id of every node that enters the routing table, `on_return` of the end of a
    cut. `chance` also draws nonces: anything but `random.SystemRandom` is for simulations. `door`: the TCP port of this
    host where others get whole sets (0: nowhere); `whole_sets` gets those of others (None: page by page only).
    """
    async with OwnedTasks() as tasks:
        overlay = Overlay(
            credentials=credentials,
            clock=clock,
            keyring=keyring,
            shelf=shelf,
            tuning=tuning,
            tasks=tasks,
            on_newcomer=on_newcomer,
            on_return=on_return,
            chance=chance,
            door=door,
            whole_sets=whole_sets,
        )
        async with open_transport(overlay.received) as transport:
            overlay.attach(transport)
            overlay.add_bootstrap(bootstrap)
            await overlay.join()
            tasks.run(overlay.maintain(), name="maintain the overlay")
            yield overlay
