"""What a node answers, from its routing table and its shelf alone. No I/O but the shelf's own, no waiting.

Every answer fits into one datagram. What a request names is hostile until the shelf has judged it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kademlia.node import Node

from dht import ordering
from dht.overlay.endpoint import size_of
from dht.overlay.messages import (
    AnyAnswer,
    AnyRequest,
    Compare,
    Find,
    Nodes,
    Page,
    Parts,
    Ping,
    Pong,
    Proof,
    Records,
    Store,
    Stored,
    WireContact,
    wire_contact,
)
from dht.overlay.routing import Routing, address_of
from dht.overlay.sealing import MAX_PLAINTEXT
from dht.seats import UNPROVEN

PAGE_CONTACTS = 8
PAGE_RESERVE = 24
"""Bytes kept free in a page for the next cursor and the list headers."""


class Shelf(Protocol):
    """What this node keeps for others. A Problem is raised only when its disk fails."""

    def ordered(self, key: bytes) -> ordering.OrderedSet: ...

    def offer(self, key: bytes, envelopes: Sequence[bytes], via: bytes) -> Sequence[int]:
        """One `dht.rules.Verdict` for each envelope. `via`: the proven id of the node that sent them, or UNPROVEN."""


class Answering:
    """`k`: contacts named to who looks for a node. `door`: the TCP port where whole sets can be had; 0: none."""

    def __init__(self, own_id: bytes, routing: Routing, shelf: Shelf, *, k: int, door: int) -> None:
        self._own_id = own_id
        self._routing = routing
        self._shelf = shelf
        self._k = k
        self._door = door

    def answer(self, request: AnyRequest, proof: Proof | None, *, proven: bool) -> AnyAnswer | None:
        """None: the request makes no sense. `proven`: the sender is who it says it is. Raises what the shelf raises."""
        match request:
            case Ping():
                return Pong(request.id, self._own_id, proof)
            case Find():
                return Nodes(request.id, self._own_id, proof, self.contacts_for(request, self._k))
            case Records():
                return self._page(request, proof)
            case Compare():
                return self._parts(request, proof)
            case Store():
                verdicts = self._shelf.offer(request.key, request.envelopes, request.sender if proven else UNPROVEN)
                return Stored(request.id, self._own_id, proof, tuple(map(int, verdicts)))

    def contacts_for(self, request: Find | Records | Compare, count: int) -> tuple[WireContact, ...]:
        """The contacts nearest to the key, without the asker."""
        nearest = self._routing.table.find_neighbors(Node(request.key), count, exclude=Node(request.sender))
        return tuple(wire_contact(n.id, address_of(n)) for n in nearest)

    def _page(self, request: Records, proof: Proof | None) -> Page:
        held = self._shelf.ordered(request.key)
        contacts = self.contacts_for(request, PAGE_CONTACTS) if request.cursor is None else ()
        told = held.fingerprint, len(held.envelopes), self._door
        page = Page(request.id, self._own_id, proof, contacts, (), None, *told)
        taken, following = held.page(request.cursor or b"", MAX_PLAINTEXT - size_of(page) - PAGE_RESERVE)
        return Page(request.id, self._own_id, proof, contacts, tuple(taken), following, *told)

    def _parts(self, request: Compare, proof: Proof | None) -> Parts | None:
        if not request.low <= request.high <= ordering.EVERYWHERE[1]:
            return None
        everywhere = (request.low, request.high) == ordering.EVERYWHERE
        contacts = self.contacts_for(request, PAGE_CONTACTS) if everywhere else ()
        held = self._shelf.ordered(request.key)
        told = held.summary(request.low, request.high)
        return Parts(request.id, self._own_id, proof, contacts, *told, len(held.envelopes), self._door)
