"""What this node holds for the mesh: the rules of `dht.rules` and `dht.seats` applied to the rows of `storage`.

An offer costs the same however much stands at its key: what is held already is known by its slot and never verified
again, and what there is no room for is refused before its signature is looked at.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache

from dht import rules
from dht.records.allowance import Allowance
from dht.records.storage import Row, Storage
from dht.records.views import Views
from dht.rules import Verdict
from dht.seats import OWN, RELAYED_PER_VIA, UNPROVEN, seat
from protocol.problems import InvalidRecord
from protocol.records import Record, Signed, reopened, verify

MAX_ROWS_PER_OWNER = 50_000
"""Rows that one signing key may occupy on this node."""
MAX_ROWS_PER_VIA = 100_000
"""Rows that one member may bring to this node."""
MAX_ROWS = 500_000
"""Rows that this node keeps in all: some 500 MB. When they are reached, who brought the most loses first."""
BURST = 4096
RECORDS_PER_S = 64.0
"""New records that one sender may offer, in a burst and in the long run. What is held already costs nothing."""
SPREAD_NOTED_S = 60.0
"""An echo within this time of the last one is not written down: it would change nothing but the disk."""
ORDERED_SETS = 1024
ORDERED_ROWS = 131_072
"""Sets kept in the order of pages, and the records in all of them: more than one member can bring."""
VERIFIED_CACHE = 16_384
"""Envelopes whose signature is remembered as good: a check costs about 130 us."""


class Replica:
    """`clock` gives Unix seconds."""

    def __init__(self, storage: Storage, clock: Callable[[], float]) -> None:
        self.storage = storage
        self._clock = clock
        self._verified = lru_cache(maxsize=VERIFIED_CACHE)(verify)
        self._allowance = Allowance(burst=BURST, per_s=RECORDS_PER_S)
        self._ordered: OrderedDict[bytes, tuple[float, rules.OrderedSet]] = OrderedDict()
        self.views = Views()
        """What this node has read at other nodes."""

    def check(self, key: bytes, envelope: bytes) -> Signed:
        """A record that may stand at `key` now, if only in the slot of its older version. Raises InvalidRecord."""
        signed = self._verified(envelope)
        self._judge(key, signed)
        return signed

    def _judge(self, key: bytes, signed: Signed) -> None:
        rules.accept(signed.record, self._clock())
        if not rules.may_stand(signed.record, key):
            raise InvalidRecord("the record does not name the key at which it was offered")

    def held(self, key: bytes) -> Iterator[Signed]:
        """Unexpired records at `key`, tombstones included; each is decoded as it is asked for. What was kept before
        such records were refused is left out."""
        for envelope in self.storage.envelopes_at(key, self._clock())[0]:
            with suppress(InvalidRecord):
                yield reopened(envelope)

    def outranks(self, key: bytes, signed: Signed) -> bool:
        """True if something of higher rank is held in the record's slot."""
        row = self.storage.in_slot(key, rules.slot(signed.record))
        return row is not None and row.expiry > self._clock() and row.rank > rules.rank(signed)

    def ordered(self, key: bytes) -> rules.OrderedSet:
        """The same, ordered for answers to peers. Kept for a while: one reader asks for many pages."""
        now = self._clock()
        kept = self._ordered.get(key)
        if kept is not None and now < kept[0]:
            self._ordered.move_to_end(key)
            return kept[1]
        envelopes, until = self.storage.envelopes_at(key, now)
        found = rules.OrderedSet(envelopes)
        self._ordered[key] = now if until is None else until, found
        self._ordered.move_to_end(key)
        while len(self._ordered) > 1 and (len(self._ordered) > ORDERED_SETS or self._ordered_rows() > ORDERED_ROWS):
            self._ordered.popitem(last=False)
        return found

    def passed_on(self, key: bytes) -> Sequence[bytes]:
        """What this node tells others of the set at `key`: RELAYED_PER_VIA of what each other member brought."""
        _, most = self.storage.occupancy(key).vias.largest
        if most <= RELAYED_PER_VIA:
            return self.ordered(key).envelopes
        now = self._clock()
        rows = self.storage.some_of_each_via(key, RELAYED_PER_VIA)
        return [row.envelope for row in rows if row.expiry > now]

    def _ordered_rows(self) -> int:
        return sum(len(ordered.positions) for _, ordered in self._ordered.values())

    def offer(self, key: bytes, envelopes: Sequence[bytes], via: bytes = UNPROVEN) -> list[Verdict]:
        """Take records from the peer `via`, each judged on its own. Never raises for what a peer sent."""
        return [self._offer(key, envelope, via) for envelope in envelopes]

    def _offer(self, key: bytes, envelope: bytes, via: bytes) -> Verdict:
        now = self._clock()
        try:
            signed = reopened(envelope)
            self._judge(key, signed)
            before = self.storage.in_slot(key, rules.slot(signed.record))
            if before is not None and before.envelope == envelope:
                if now - before.spread_at >= SPREAD_NOTED_S:
                    self.storage.mark_spread([before], now)
                return Verdict.KEPT
            if not self._allowance.take(via, now):
                return Verdict.REFUSED
            row = _row(key, signed, via=via, ours=False, spread_at=now)
            if before is None and self._room_for(row, signed.record) is None:
                return Verdict.REFUSED
            self._verified(envelope)
        except InvalidRecord:
            return Verdict.REFUSED
        return self._keep(row, signed)

    def keep(self, key: bytes, signed: Signed, *, ours: bool, spread_at: float, via: bytes = OWN) -> Verdict:
        """Merge one checked record into the set at `key`. A record that is ours stays ours when a peer echoes it."""
        return self._keep(_row(key, signed, via=OWN if ours else via, ours=ours, spread_at=spread_at), signed)

    def _keep(self, row: Row, signed: Signed) -> Verdict:
        before = self.storage.in_slot(row.key, row.slot)
        if before is None:
            room = self._room_for(row, signed.record)
            if room is None:
                return Verdict.REFUSED
            row, leaving = room
        elif before.rank > row.rank:
            return Verdict.SUPERSEDED
        else:
            leaving = []
            ours = row.ours or (before.ours and before.envelope == row.envelope)
            row = row._replace(ours=ours, via=_brought_by(row, before, ours=ours))
        self.storage.put([row], leaving=leaving)
        self._reorder(row, [*leaving, before] if before is not None else leaving)
        self.views.heard(row.key, signed)
        return Verdict.KEPT

    def _reorder(self, row: Row, gone: Sequence[Row]) -> None:
        """Keep the ordered sets true without reading them anew."""
        for one in gone:
            if one.key in self._ordered:
                self._ordered[one.key][1].remove(one.envelope)
        if row.key in self._ordered:
            until, ordered = self._ordered[row.key]
            ordered.add(row.envelope)
            self._ordered[row.key] = min(until, row.expiry), ordered

    def _room_for(self, row: Row, record: Record) -> tuple[Row, list[Row]] | None:
        """The row as it may take a free slot, and who leaves for it; None if there is no room."""
        if not rules.bound_to(record, row.key):
            return None
        whole, ours = self.storage.whole, row.ours
        if not ours and (whole.owners[row.owner] >= MAX_ROWS_PER_OWNER or whole.vias[row.via] >= MAX_ROWS_PER_VIA):
            return None
        per_owner = rules.MAX_PER_OWNER[type(record)]
        place = seat(self.storage.occupancy(row.key), owner=row.owner, via=row.via, per_owner=per_owner)
        if not place.granted:
            return None
        if place.leaver is not None:
            leaver = self.storage.lowest(row.key, *place.leaver)
            if leaver is None or (place.by_rank and leaver.rank > row.rank):
                return None
            return row._replace(via=_brought_by(row, leaver, ours=ours) if place.by_rank else row.via), [leaver]
        if whole.total < MAX_ROWS:
            return row, []
        crowded, rows = whole.vias.largest
        if not ours and rows <= whole.vias[row.via] + 1:
            return None
        longest = self.storage.longest_lived(crowded)
        return row, [longest] if longest is not None else []


def _row(key: bytes, signed: Signed, *, via: bytes, ours: bool, spread_at: float) -> Row:
    seq, withdrawn, envelope = rules.rank(signed)
    slot, expiry = rules.slot(signed.record), signed.record.expiry
    return Row(key, slot, signed.public_key, via, seq, withdrawn, expiry, ours, spread_at, envelope)


def _brought_by(row: Row, before: Row, *, ours: bool) -> bytes:
    """A row that takes the place of another of the same signer counts against the same member as that one."""
    if ours:
        return OWN
    return row.via if before.via == OWN else before.via
