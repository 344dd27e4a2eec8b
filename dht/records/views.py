"""What a reader knows of the sets that it has read: the next read asks only for what differs.

A view holds checked records, one per slot, tombstones included. It also remembers the positions of envelopes that it
has seen and that lost their slot, so that a holder who lags behind is not asked for them again and again.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, OrderedDict
from collections.abc import Iterable

from dht import rules
from protocol.records import ServiceRecord, Signed, is_withdrawn

MAX_VIEWS = 64
MAX_VIEWED = 100_000
"""Records in all views together: some 150 MB at the most."""
MAX_WITHIN = 64
"""Nodes of which it is remembered that they had nothing to bring."""
WORTH_KEEPING = 8
"""Smaller sets fit in a page or two: they are read whole."""


class View:
    """One key's set as last read."""

    def __init__(self, key: bytes, records: Iterable[Signed] = ()) -> None:
        self.ordered = rules.OrderedSet(())
        self.within: dict[bytes, bytes] = {}
        """See `dht.overlay.reading.Viewed`."""
        self._key = key
        self._slots: dict[bytes, Signed] = {}
        self._seen: set[bytes] = set()
        self._per_owner: Counter[bytes] = Counter()
        self._shown: list[Signed] = []
        """Highest rank first. Replaced, never changed: readers compare it with what they were given before."""
        self._next_expiry = float("inf")
        self.add(*records)

    def __len__(self) -> int:
        return len(self._slots)

    def has(self, short: bytes) -> bool:
        """True if the envelope at this (shortened) position was seen before, whatever became of it."""
        return short in self._seen

    def add(self, *records: Signed) -> None:
        """Merge checked records."""
        shown, changed = list(self._shown), False
        for signed in records:
            short = rules.position(signed.envelope)[: rules.SHORT_BYTES]
            if short not in self._seen:
                self._seen.add(short)
                changed = self._merge(signed, shown) or changed
        if changed:
            self._shown = shown

    def _merge(self, signed: Signed, shown: list[Signed]) -> bool:
        """True if the record has taken its slot."""
        place = rules.slot(signed.record)
        before = self._slots.get(place)
        if before is not None:
            if rules.rank(before) > rules.rank(signed):
                return False
            self._take_out(place, before, shown)
        self._slots[place] = signed
        self._per_owner[signed.public_key] += 1
        self.ordered.add(signed.envelope)
        self._next_expiry = min(self._next_expiry, signed.record.expiry)
        if not is_withdrawn(signed.record) and rules.bound_to(signed.record, self._key):
            insort(shown, signed, key=_descending)
        return True

    def _take_out(self, place: bytes, signed: Signed, shown: list[Signed]) -> None:
        del self._slots[place]
        self._per_owner[signed.public_key] -= 1
        self.ordered.remove(signed.envelope)
        at = bisect_left(shown, _descending(signed), key=_descending)
        while at < len(shown) and shown[at].record.seq == signed.record.seq:
            if shown[at].envelope == signed.envelope:
                del shown[at]
                return
            at += 1

    def visible(self, now: float) -> list[Signed]:
        """What a reader is shown. The same object as long as nothing changes."""
        if now >= self._next_expiry:
            self._forget(slot for slot, signed in self._slots.items() if signed.record.expiry <= now)
            self._next_expiry = min((s.record.expiry for s in self._slots.values()), default=float("inf"))
        if self._is_overfull:
            kept = {rules.slot(signed.record) for signed in rules.merge(self._slots.values())}
            self._forget(slot for slot in self._slots if slot not in kept)
        if len(self.within) > MAX_WITHIN:
            self.within.clear()
        if len(self._seen) > len(self._slots) + rules.MAX_PER_KEY:
            self._seen = {place[: rules.SHORT_BYTES] for place in self.ordered.positions}
        return self._shown

    @property
    def _is_overfull(self) -> bool:
        if len(self._slots) > rules.MAX_PER_KEY:
            return True
        return len(self._slots) > min(rules.MAX_PER_OWNER.values()) and any(
            count > rules.MAX_PER_OWNER[ServiceRecord] for count in self._per_owner.values()
        )

    def _forget(self, slots: Iterable[bytes]) -> None:
        shown = list(self._shown)
        for place in list(slots):
            self._take_out(place, self._slots[place], shown)
        self._shown = shown


def _descending(signed: Signed) -> int:
    return -signed.record.seq


class Views:
    """The views of one node, the least recently used forgotten first."""

    def __init__(self) -> None:
        self._views: OrderedDict[bytes, View] = OrderedDict()

    def get(self, key: bytes) -> View | None:
        view = self._views.get(key)
        if view is not None:
            self._views.move_to_end(key)
        return view

    def keep(self, key: bytes, view: View) -> None:
        """Remember a view, if the set is large enough for that."""
        if len(view) < WORTH_KEEPING:
            self._views.pop(key, None)
            return
        self._views[key] = view
        self._views.move_to_end(key)
        while len(self._views) > 1 and (len(self._views) > MAX_VIEWS or self._total() > MAX_VIEWED):
            self._views.popitem(last=False)

    def forget(self, key: bytes) -> None:
        """The set is read anew when it is asked for."""
        self._views.pop(key, None)

    def heard(self, key: bytes, signed: Signed) -> None:
        """A record came to this node in another way than by reading."""
        if key in self._views:
            self._views[key].add(signed)

    def _total(self) -> int:
        return sum(len(view) for view in self._views.values())
