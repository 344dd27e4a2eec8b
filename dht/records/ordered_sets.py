"""The sets at the keys that were asked for lately, in the order of pages, kept true as records come, go and expire."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from heapq import heapify, heappop, heappush

from dht import ordering

MAX_SETS = 4096
"""Most of them empty: a lookup asks at many nodes that hold nothing at its key."""
MAX_ROWS = 131_072
"""Records in all of them: more than one member can bring."""


class OrderedSets:
    """The least recently asked for is forgotten first."""

    def __init__(self) -> None:
        self._sets: OrderedDict[bytes, _Expiring] = OrderedDict()
        self._rows = 0

    def get(self, key: bytes, now: float) -> ordering.OrderedSet | None:
        """Without what has expired at `now` (Unix s). None: the set is not known here."""
        kept = self._sets.get(key)
        if kept is None:
            return None
        self._sets.move_to_end(key)
        if kept.expires_at <= now:
            self._rows -= kept.forget_expired(now)
        return kept.ordered

    def keep(self, key: bytes, rows: Iterable[tuple[bytes, int]]) -> ordering.OrderedSet:
        """Remember the set at a key that is not known yet: envelopes, and when they expire (Unix s)."""
        kept = self._sets[key] = _Expiring(rows)
        self._rows += len(kept)
        while len(self._sets) > 1 and (len(self._sets) > MAX_SETS or self._rows > MAX_ROWS):
            _, oldest = self._sets.popitem(last=False)
            self._rows -= len(oldest)
        return kept.ordered

    def add(self, key: bytes, envelope: bytes, expiry: int) -> None:
        """Without effect if the set is not known here, as `remove`."""
        if key in self._sets:
            self._sets[key].add(envelope, expiry)
            self._rows += 1

    def remove(self, key: bytes, envelope: bytes) -> None:
        if key in self._sets:
            self._rows -= self._sets[key].ordered.remove(envelope)


class _Expiring:
    """A set, and its envelopes in a heap by their expiry; those that went are left in there for a while."""

    def __init__(self, rows: Iterable[tuple[bytes, int]]) -> None:
        self._heap = [(expiry, envelope) for envelope, expiry in rows]
        heapify(self._heap)
        self.ordered = ordering.OrderedSet(envelope for _, envelope in self._heap)

    def __len__(self) -> int:
        return len(self.ordered.envelopes)

    @property
    def expires_at(self) -> float:
        return self._heap[0][0] if self._heap else float("inf")

    def add(self, envelope: bytes, expiry: int) -> None:
        self.ordered.add(envelope)
        heappush(self._heap, (expiry, envelope))
        if len(self._heap) > 2 * len(self) + 16:  # a publisher may replace its record as often as it likes
            held = set(self.ordered.envelopes)
            self._heap = list({row for row in self._heap if row[1] in held})
            heapify(self._heap)

    def forget_expired(self, now: float) -> int:
        """How many went."""
        gone = 0
        while self.expires_at <= now:
            gone += self.ordered.remove(heappop(self._heap)[1])
        return gone
