"""What a reader knows of the sets that it has read: the next read asks only for what differs.

A view holds checked records, one per slot, tombstones included, and remembers who holds what: for each holder, the
positions in the set that it was last found to have (`held`). That is more than the records: of an envelope that lost
its slot the position stays, so that a holder who lags behind is not asked for it again and again.

**Two things of different kinds.** Which record stands in a slot is a law of sets (`rules.merge`): it does not matter
who brought it, when, or how often. Which slots there is *room* for is no such law. It is a function of the records and
of who holds them, by `seats.seated`, and is applied again whenever they change; what it leaves out is forgotten here,
not refuted. So a holder who lies cannot crowd out what others hold: of n holders, each has the first
`MAX_PER_KEY // n` of its queue in the view, and k of them who agree have k times as many.

Room may be made while records still come in. That cuts nothing short: what is among the first so many of a whole queue
is among the first so many of any part of it.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_left, insort
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain, islice
from typing import NamedTuple

from dht import ordering, rules
from dht.seats import by_turns, seated
from protocol.records import ServiceRecord, Signed, is_withdrawn

MAX_VIEWS = 64
MAX_VIEWED = 100_000
"""Positions seen in all views together; with their records, some 150 MB at the most."""
MAX_HOLDERS = 16
"""Nodes of which it is remembered what they hold at a key: those heard last. A lookup hears 5 to 8 that hold it."""
SEEN_BEYOND = 2 * rules.MAX_PER_KEY
"""Positions remembered beside those of the records in a view."""
EXCESS = 1 / 4
"""While records come in, a view may have so many more than there is room for: room is not made for each of them."""
ASK_ALL_S = 600.0
"""Where more was left out than is remembered, all of it is asked for again this often."""
MANY = 64
"""More records than this are not taken out of a view one by one: it is made anew without them."""
WORTH_KEEPING = 8
"""Smaller sets fit in a page or two: they are read whole."""


class View:
    """One key's set as last read. `lots` decides in which order signers take turns, where there is too little room; who
    does not know it cannot choose keys that come first."""

    def __init__(self, key: bytes, records: Iterable[Signed] = (), *, lots: bytes = b"") -> None:
        """`records`: what the reader holds itself."""
        self.ordered = ordering.OrderedSet(())
        self._key = key
        self._lots = lots
        self._held: OrderedDict[bytes, ordering.Places] = OrderedDict()
        self._own: set[bytes] = set()
        """Positions of what the reader holds itself: it is one of the holders."""
        self._slots: dict[bytes, Signed] = {}
        self._seen: dict[bytes, tuple[bytes, bytes]] = {}
        """By shortened position, the position and the slot of an envelope."""
        self._contenders: dict[bytes, _Contender] = {}
        """By slot: those that have a seat, and those that were left out."""
        self._ask_all_at = 0.0
        self._per_owner: Counter[bytes] = Counter()
        self._shown: list[Signed] = []
        """Highest rank first. Replaced, never changed: readers compare it with what they were given before."""
        self._next_expiry = float("inf")
        self.add_own(*records)

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def seen(self) -> int:
        """How many envelopes are remembered, with their records or without."""
        return len(self._seen)

    # --- what the reader of a set asks: see `dht.overlay.gathering.Known` ---

    @property
    def held(self) -> Mapping[bytes, ordering.Places]:
        return self._held

    def place(self, short: bytes) -> bytes | None:
        seen = self._seen.get(short)
        return None if seen is None else seen[0]

    # --- what comes in ---

    def tell(self, held: Mapping[bytes, ordering.Places]) -> None:
        """What holders were found to hold now. To be told before what they brought is added."""
        changed = any(self._held.get(node) is not places for node, places in held.items())
        for node, places in held.items():
            self._held[node] = places
            self._held.move_to_end(node)
        while len(self._held) > MAX_HOLDERS:
            self._held.popitem(last=False)
        if changed and len(self._contenders) > len(self._slots):
            self._reconsider()

    def add(self, *records: Signed) -> None:
        """Merge checked records."""
        shown, changed = list(self._shown), False
        for signed in records:
            place = ordering.position(signed.envelope)
            if place[: ordering.SHORT_BYTES] not in self._seen:
                changed = self._merge(signed, place, shown) or changed
        if changed:
            self._shown = shown
        if len(self._slots) > rules.MAX_PER_KEY * (1 + EXCESS):
            self._make_room()

    def add_own(self, *records: Signed) -> None:
        """Merge records that this node holds itself."""
        self._own.update(ordering.position(signed.envelope) for signed in records)
        self.add(*records)

    def _merge(self, signed: Signed, place: bytes, shown: list[Signed]) -> bool:
        """True if the record has taken its slot."""
        slot = rules.slot(signed.record)
        self._seen[place[: ordering.SHORT_BYTES]] = place, slot
        before = self._slots.get(slot)
        if before is not None:
            if rules.rank(before) > rules.rank(signed):
                return False
            self._take_out(slot, before, shown)
        self._slots[slot] = signed
        self._contenders[slot] = _contender(signed, place)
        self._per_owner[signed.public_key] += 1
        self.ordered.add(signed.envelope)
        self._next_expiry = min(self._next_expiry, signed.record.expiry)
        if not is_withdrawn(signed.record) and rules.bound_to(signed.record, self._key):
            insort(shown, signed, key=_descending)
        return True

    def _take_out(self, slot: bytes, signed: Signed, shown: list[Signed]) -> None:
        del self._slots[slot]
        self._per_owner[signed.public_key] -= 1
        self.ordered.remove(signed.envelope)
        at = bisect_left(shown, _descending(signed), key=_descending)
        while at < len(shown) and shown[at].record.seq == signed.record.seq:
            if shown[at].envelope == signed.envelope:
                del shown[at]
                return
            at += 1

    # --- what is shown ---

    def visible(self, now: float) -> list[Signed]:
        """What a reader is shown. The same object as long as nothing changes."""
        if now >= self._next_expiry:
            expired = [slot for slot, signed in self._slots.items() if signed.record.expiry <= now]
            self._forget(expired)
            for slot in expired:
                del self._contenders[slot]
            self._next_expiry = min((s.record.expiry for s in self._slots.values()), default=float("inf"))
        if self._is_overfull:
            self._make_room()
        if len(self._seen) > len(self._slots) + SEEN_BEYOND:
            self._forget_seen(now)
        return self._shown

    @property
    def _is_overfull(self) -> bool:
        if len(self._slots) > rules.MAX_PER_KEY:
            return True
        return len(self._slots) > min(rules.MAX_PER_OWNER.values()) and any(
            count > rules.MAX_PER_OWNER[ServiceRecord] for count in self._per_owner.values()
        )

    def _forget(self, slots: Collection[bytes]) -> None:
        """Expired, or left out: then it stays a contender."""
        if len(slots) > MANY:
            gone = {self._slots.pop(slot).envelope for slot in slots}
            self.ordered.remove_all(gone)
            self._per_owner = Counter(signed.public_key for signed in self._slots.values())
            self._shown = [signed for signed in self._shown if signed.envelope not in gone]
            return
        shown = list(self._shown)
        for slot in slots:
            self._take_out(slot, self._slots[slot], shown)
        self._shown = shown

    # --- who has a seat when there is too little room ---

    def _make_room(self) -> None:
        """Forget what is more than a signer may have, and leave out what has no seat. What nobody holds comes last."""
        contenders = self._contenders_by_signer(self._slots)
        kept = list(chain.from_iterable(contenders))
        for slot in self._slots.keys() - kept:
            del self._contenders[slot]
        if len(kept) > rules.MAX_PER_KEY:
            named = dict.fromkeys(seated(self._queues(contenders), rules.MAX_PER_KEY))
            kept = list(islice(dict.fromkeys([*named, *kept]), rules.MAX_PER_KEY))
        self._forget(self._slots.keys() - kept)

    def _reconsider(self) -> None:
        """Ask again for what was left out and would have a seat now that others hold less, or other records."""
        seats = seated(self._queues(self._contenders_by_signer(self._contenders)), rules.MAX_PER_KEY)
        wanted = {slot for slot in seats if slot not in self._slots}
        if wanted:
            self._ask_for({place for place, slot in self._seen.values() if slot in wanted})

    def _contenders_by_signer(self, slots: Iterable[bytes]) -> list[list[bytes]]:
        """The slots of each signer, the highest rank first, no more than one may have. The signers in drawn order."""
        by_signer: defaultdict[bytes, list[bytes]] = defaultdict(list)
        for slot in slots:
            by_signer[self._contenders[slot].signer].append(slot)
        in_order = sorted(by_signer, key=lambda signer: hashlib.blake2b(signer, key=self._lots).digest())
        return [self._highest(by_signer[signer]) for signer in in_order]

    def _highest(self, slots: list[bytes]) -> list[bytes]:
        ranked = sorted(slots, key=lambda slot: self._contenders[slot].rank, reverse=True)
        return ranked[: self._contenders[ranked[0]].most]

    def _queues(self, contenders: Sequence[Sequence[bytes]]) -> list[list[bytes]]:
        """For each holder, its slots: first the highest ranked of each signer, then the second of each, and so on."""
        slot_at = dict(self._seen.values())

        def queue_of(positions: Iterable[bytes]) -> list[bytes]:
            """Who has an older version counts as a holder of the newer, as where records are kept."""
            slots = {slot_at.get(place) for place in positions}
            return by_turns([slot for slot in of_one if slot in slots] for of_one in contenders)

        equal = {id(places): places for places in self._held.values()}
        queues = {same: queue_of(places.positions) for same, places in equal.items()}
        return [*(queues[id(places)] for places in self._held.values()), queue_of(self._own)]

    def _forget_seen(self, now: float) -> None:
        """Remember nothing beside what is in the view. Of what is forgotten so, some may have a seat some time: so once
        in a while all of it is asked for again."""
        kept = {place[: ordering.SHORT_BYTES] for place in self.ordered.positions}
        self._seen = {short: seen for short, seen in self._seen.items() if short in kept}
        self._own.intersection_update(self.ordered.positions)
        self._contenders = {slot: self._contenders[slot] for slot in self._slots}
        if now >= self._ask_all_at:
            self._ask_all_at = now + ASK_ALL_S
            self._ask_for(set().union(*(p.positions for p in self._held.values())).difference(self.ordered.positions))

    def _ask_for(self, places: set[bytes]) -> None:
        """Forget that these were ever seen: the next reader compares with sets that lack them."""
        for place in places:
            _, slot = self._seen.pop(place[: ordering.SHORT_BYTES], (place, b""))
            if slot not in self._slots:
                self._contenders.pop(slot, None)
        equal = {id(held): held for held in self._held.values()}
        fewer = {same: held.without(places) for same, held in equal.items()}
        self._held = OrderedDict((node, fewer[id(held)]) for node, held in self._held.items())


class _Contender(NamedTuple):
    """What stands in a slot, or was left out: what decides on its place in a queue. `most`: of one signer."""

    signer: bytes
    rank: tuple[int, bool, bytes]
    most: int


def _contender(signed: Signed, place: bytes) -> _Contender:
    seq, withdrawn, _ = rules.rank(signed)
    return _Contender(signed.public_key, (seq, withdrawn, place), rules.MAX_PER_OWNER[type(signed.record)])


def _descending(signed: Signed) -> int:
    return -signed.record.seq


class Views:
    """The views of one node, the least recently used forgotten first."""

    def __init__(self) -> None:
        self._views: OrderedDict[bytes, View] = OrderedDict()
        self._lots = os.urandom(16)

    def get(self, key: bytes) -> View | None:
        view = self._views.get(key)
        if view is not None:
            self._views.move_to_end(key)
        return view

    def begin(self, key: bytes) -> View:
        """An empty one, that is not kept yet."""
        return View(key, lots=self._lots)

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
            self._views[key].add_own(signed)

    def _total(self) -> int:
        return sum(view.seen for view in self._views.values())
