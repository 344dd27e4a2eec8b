"""The routing table: kademlia's buckets, with an exact neighbour search and without its orphaned pings. No I/O.

A contact enters only after it proved its node id at its address. One failed call makes it suspect, a second in a row
evicts it; an evicted node is *resting* (skipped by lookups) for a while, and remembered so that it can be asked again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from kademlia.node import Node
from kademlia.routing import RoutingTable

from dht.overlay.datagrams import Address

FAILURES_TO_EVICT = 2
REST_S = 10.0
MAX_REST_S = 600.0
RECENTLY_S = 60.0
FORGET_AFTER_S = 86_400.0
MAX_LOST = 512
SUSPICIOUS_SHARE = 0.25
"""Of all known members, this share lost: perhaps it is we who are cut off. A few of them are asked all the time."""
CUT_OFF_SHARE = 2 / 3
"""This share lost: taken for a cut. What the lost ones hold is then unknown for CUT_OFF_S, not gone."""
CUT_OFF_S = 3600.0
MAX_PROVEN = 8192
MAX_NEIGHBOURS = 64
PROOF_HOLDS_S = 86_400.0
"""Then a node has to prove itself again: its certificate may have ended."""


class Table(RoutingTable):
    """kademlia's k-buckets. `protocol` is None: this table never calls out by itself."""

    def __init__(self, node: Node, ksize: int) -> None:
        super().__init__(None, ksize, node)
        self._by_number: dict[int, Node] | None = None
        """The contacts by their ids as numbers; None after a change. A request sorts them all, and few change any."""

    def add_contact(self, node: Node) -> Node | None:
        """Insert, splitting buckets where Kademlia does. Returns the contact whose life should be checked if full."""
        known = self.buckets[self.get_bucket_for(node)].nodes
        if (before := known.get(node.id)) is not None and before.same_home_as(node):
            known.move_to_end(node.id)
            return None
        self._by_number = None
        while True:
            index = self.get_bucket_for(node)
            bucket = self.buckets[index]
            if bucket.add_node(node):
                return None
            if not bucket.has_in_range(self.node) and bucket.depth() % 5 == 0:
                oldest: Node = bucket.head()
                return oldest
            self.split_bucket(index)

    def remove_contact(self, node: Node) -> None:
        self._by_number = None
        super().remove_contact(node)

    def contacts(self) -> list[Node]:
        return [node for bucket in self.buckets for node in bucket.nodes.values()]

    def find_neighbors(self, node: Node, k: int | None = None, exclude: Node | None = None) -> list[Node]:
        """The k contacts closest to `node`, exactly (the inherited search misses some of them)."""
        if self._by_number is None:
            self._by_number = {contact.long_id: contact for contact in self.contacts()}
        count = k or self.ksize
        distance = node.long_id.__xor__  # bound, so that sorting calls no Python: faster than a heap for some hundred
        nearest = [self._by_number[number] for number in sorted(self._by_number, key=distance)[: count + 1]]
        return [c for c in nearest if exclude is None or c.id != exclude.id][:count]

    def get(self, node_id: bytes) -> Node | None:
        found: Node | None = self.buckets[self.get_bucket_for(Node(node_id))][node_id]
        return found


@dataclass(slots=True)
class _Lost:
    """A node that stopped answering. `proven`: it once was a member for certain, so it is asked again later."""

    address: Address
    proven: bool
    since: float
    until: float
    rest: float


class Routing:
    """Contacts and their health. Times are the event loop's, in seconds."""

    def __init__(self, own_id: bytes, k: int) -> None:
        self.own = Node(own_id)
        self.table = Table(self.own, k)
        self._proven: OrderedDict[bytes, tuple[Address, float]] = OrderedDict()
        self._neighbours: dict[bytes, Address] = {}
        self._failures: dict[bytes, int] = {}
        self._lost: dict[bytes, _Lost] = {}

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self.table.buckets)

    def closest(self, key: bytes, count: int) -> list[Node]:
        return self.table.find_neighbors(Node(key), count)

    def proved(self, node_id: bytes, address: Address, now: float) -> None:
        """A node proved that it is a member, and at this address."""
        self._proven[node_id] = address, now
        self._proven.move_to_end(node_id)
        if len(self._proven) > MAX_PROVEN:
            self._proven.popitem(last=False)

    def is_proven(self, node_id: bytes, address: Address, now: float) -> bool:
        """True if this node proved itself at this address within PROOF_HOLDS_S."""
        proof = self._proven.get(node_id)
        return proof is not None and proof[0] == address and now - proof[1] < PROOF_HOLDS_S

    def meet(self, node_id: bytes, address: Address) -> None:
        """A node is said to be on this machine's own network. It counts once it is proven; MAX_NEIGHBOURS are kept."""
        if node_id in self._neighbours or len(self._neighbours) < MAX_NEIGHBOURS:
            self._neighbours[node_id] = address

    def part(self, node_id: bytes) -> None:
        """It is not there any more."""
        self._neighbours.pop(node_id, None)

    def neighbours(self, now: float) -> list[Node]:
        """The proven ones. In a large mesh few of them have a place in the table."""
        return [Node(n, *a) for n, a in self._neighbours.items() if self.is_proven(n, a, now)]

    def strangers(self, now: float) -> list[tuple[bytes, Address]]:
        """Those that are still to be proven."""
        return [(n, a) for n, a in self._neighbours.items() if not self.is_proven(n, a, now)]

    def alive(self, node_id: bytes, address: Address) -> Node | None:
        """A proven node was heard. Returns a contact whose life should be checked if the bucket is full."""
        self._failures.pop(node_id, None)
        self._lost.pop(node_id, None)
        if node_id == self.own.id:
            return None
        return self.table.add_contact(Node(node_id, address.host, address.port))

    def failed(self, node_id: bytes, address: Address, now: float) -> None:
        """A call went unanswered. The second failure in a row evicts a contact; anybody else rests at the first."""
        contact = self.table.get(node_id)
        is_contact = contact is not None and address_of(contact) == address
        if is_contact:
            self._failures[node_id] = self._failures.get(node_id, 0) + 1
            if self._failures[node_id] < FAILURES_TO_EVICT:
                return
            del self._failures[node_id]
            self.table.remove_contact(Node(node_id))
        before = self._lost.pop(node_id, None)
        rest = REST_S if before is None else min(before.rest * 2, MAX_REST_S)
        proven = is_contact or (before is not None and before.proven)
        self._lost[node_id] = _Lost(address, proven, before.since if before else now, now + rest, rest)
        if len(self._lost) > MAX_LOST:
            del self._lost[next(iter(self._lost))]

    def is_resting(self, node_id: bytes, now: float) -> bool:
        lost = self._lost.get(node_id)
        return lost is not None and now < lost.until

    def lost_members(self) -> list[Node]:
        """Former contacts that stopped answering."""
        return [Node(n, lost.address.host, lost.address.port) for n, lost in self._lost.items() if lost.proven]

    @property
    def anybody_lost(self) -> bool:
        """True if a former contact does not answer."""
        return any(member.proven for member in self._lost.values())

    @property
    def lost_share(self) -> float:
        """Lost members among all known ones, 0 to 1."""
        lost = sum(member.proven for member in self._lost.values())
        return lost / (lost + len(self)) if lost else 0.0

    def is_lost(self, node_id: bytes) -> bool:
        lost = self._lost.get(node_id)
        return lost is not None and lost.proven

    def missing(self, now: float) -> list[Node]:
        """Former contacts that may be back at any moment: what they hold is not known to be gone.

        Those lost within the last minute; within the last hour if this node seems to be cut off.
        """
        horizon = now - (CUT_OFF_S if self.lost_share >= CUT_OFF_SHARE else RECENTLY_S)
        return [node for node in self.lost_members() if self._lost[node.id].since > horizon]

    def end_rests(self, now: float) -> None:
        """Let everybody lost be asked again at once: one of them is back, the others may be too."""
        for lost in self._lost.values():
            lost.until, lost.rest = now, REST_S / 2

    def to_ask_again(self, now: float) -> list[Node]:
        """Former contacts whose rest is over. Forgets those lost for a day."""
        for node_id in [n for n, lost in self._lost.items() if now - lost.since > FORGET_AFTER_S]:
            del self._lost[node_id]
        return [node for node in self.lost_members() if now >= self._lost[node.id].until]


def address_of(node: Node) -> Address:
    return Address(node.ip, node.port)


def refresh_targets(own_id: bytes, prefixes: int, fill: bytes) -> Iterable[bytes]:
    """One id in each of the first `prefixes` sibling subtrees of `own_id`; `fill` gives the bits behind the prefix.

    Looking them up fills the far buckets. Looking up only the own id does not: a cohort that joined through one
    node would then fall apart when that node's generation dies.
    """
    own, rest, bits = int.from_bytes(own_id, "big"), int.from_bytes(fill, "big"), len(own_id) * 8
    for depth in range(prefixes):
        below = bits - depth - 1
        prefix = (own >> below) ^ 1
        yield (prefix << below | rest & ((1 << below) - 1)).to_bytes(len(own_id), "big")
