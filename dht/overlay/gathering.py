"""What one reading of a set brings together, over what was known before: envelopes, and who holds which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from kademlia.node import Node

from dht import ordering, rules

LARGE = 256
"""Who lacks so many envelopes of a set asks for it over HTTP: it would be some 80 pages."""


class Known(Protocol):
    """What the reader of a set has of it already: see `dht.records.views.View`."""

    @property
    def ordered(self) -> ordering.OrderedSet: ...

    @property
    def held(self) -> Mapping[bytes, ordering.Places]:
        """By node id, what that node was last found to hold."""

    def place(self, short: bytes) -> bytes | None:
        """The position of an envelope that was seen before, whatever became of it, from its first SHORT_BYTES."""


class Nothing:
    """Of a set that is new here."""

    def __init__(self) -> None:
        self.ordered = ordering.OrderedSet(())
        self.held: dict[bytes, ordering.Places] = {}

    def place(self, short: bytes) -> None:
        return None


class Gathering:
    """What one reading brings together, over what was known before."""

    def __init__(self, known: Known) -> None:
        self.envelopes: dict[bytes, bytes] = {}
        """By position, those not known before."""
        self.held: dict[bytes, ordering.Places] = {}
        self._read: set[bytes] = set()
        """Nodes whose sets are here whole."""
        self._known = known
        self._places: dict[bytes, bytes] = {}

    def take(self, envelopes: Iterable[bytes]) -> list[bytes]:
        """Their positions."""
        places: list[bytes] = []
        for envelope in envelopes:
            place = ordering.position(envelope)
            places.append(place)
            if self._known.place(place[: ordering.SHORT_BYTES]) is None:
                self._places[place[: ordering.SHORT_BYTES]] = place
                self.envelopes[place] = envelope
        return places

    def place(self, short: bytes) -> bytes | None:
        """The position of an envelope that is here, or was seen before."""
        return self._places.get(short) or self._known.place(short)

    def settle(self, nodes: Iterable[Node], places: ordering.Places) -> None:
        """These nodes hold just this."""
        for node in nodes:
            self.held[node.id] = places
            self._read.add(node.id)

    def add(self, node_id: bytes, places: set[bytes]) -> None:
        """This node holds that, and perhaps more; what it held before may still be there."""
        before = self.held.get(node_id) or self._known.held.get(node_id) or ordering.Places()
        both = places.union(before.positions)
        self.held[node_id] = ordering.Places(both if len(both) <= 2 * rules.MAX_PER_KEY else places)

    def count_read(self, node_ids: Iterable[bytes]) -> int:
        """How many of these nodes' sets are here whole."""
        return len(self._read.intersection(node_ids))

    def equal_to(self, fingerprint: bytes) -> ordering.Places | None:
        """A set that is here already."""
        found = next((places for places in self._sets() if places.fingerprint == fingerprint), None)
        if found is None and self._known.ordered.fingerprint == fingerprint:
            return ordering.Places(self._known.ordered.positions)
        return found

    def lacks_most(self, count: int) -> bool:
        """True if no set is here with which it would be worth comparing one of `count`."""
        most = max(len(places.positions) for places in (*self._sets(), self._known.ordered))
        return most < min(LARGE, count // 2)

    def most_similar_to(self, parts: bytes) -> ordering.Places:
        """Of the sets that are here, the one of which the fewest differ from these parts of all positions."""
        sets = {id(places): places for places in (*self._sets(), self._known.ordered)}
        return min(sets.values(), key=lambda places: len(places.differing(*ordering.EVERYWHERE, parts)))

    def _sets(self) -> Iterable[ordering.Places]:
        return (*self.held.values(), *self._known.held.values())
