"""What this node holds for the mesh: the rules of `dht.rules` and `dht.seats` applied to the rows of `storage`.

An offer costs the same however much stands at its key: what is held already is known by its slot and never verified
again, and what there is no room for is refused before its signature is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from dht import ordering, rules
from dht.records.allowance import Allowance
from dht.records.ordered_sets import OrderedSets
from dht.records.storage import Row, Storage
from dht.records.verified import Verified
from dht.records.views import Views
from dht.rules import Verdict
from dht.seats import OWN, RELAYED_PER_VIA, UNPROVEN, seat
from protocol.problems import InvalidRecord
from protocol.records import Record, Signed, reopened

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


class Change(NamedTuple):
    """A record that is to be kept, and the rows that go for it."""

    row: Row
    signed: Signed
    gone: Sequence[Row]


class Replica:
    """`clock` gives Unix seconds."""

    def __init__(self, storage: Storage, clock: Callable[[], float]) -> None:
        self.storage = storage
        self._clock = clock
        self._verified = Verified()
        self._allowance = Allowance(burst=BURST, per_s=RECORDS_PER_S)
        self._ordered = OrderedSets()
        self.views = Views()
        """What this node has read at other nodes."""

    def check(self, key: bytes, envelope: bytes) -> Signed:
        """A record that may stand at `key` now, if only in the slot of its older version. Raises InvalidRecord."""
        signed = reopened(envelope)
        self._judge(key, signed)
        self._verified.check(signed)
        return signed

    def _judge(self, key: bytes, signed: Signed) -> None:
        rules.accept(signed.record, self._clock())
        if not rules.may_stand(signed.record, key):
            raise InvalidRecord("the record does not name the key at which it was offered")

    def held(self, key: bytes) -> Iterator[Signed]:
        """Unexpired records at `key`, tombstones included; each is decoded as it is asked for. What was kept before
        such records were refused is left out."""
        for envelope, _ in self.storage.envelopes_at(key, self._clock()):
            with suppress(InvalidRecord):
                yield reopened(envelope)

    def outranks(self, key: bytes, signed: Signed) -> bool:
        """True if something of higher rank is held in the record's slot."""
        row = self.storage.in_slot(key, rules.slot(signed.record))
        return (
            row is not None
            and row.expiry > self._clock()
            and row.rank > rules.rank(signed)
            and not rules.is_ahead(row.seq, self._clock())
        )

    def ordered(self, key: bytes) -> ordering.OrderedSet:
        """The same, ordered for answers to peers."""
        now = self._clock()
        known = self._ordered.get(key, now)
        return known if known is not None else self._ordered.keep(key, self.storage.envelopes_at(key, now))

    def passed_on(self, key: bytes) -> Sequence[bytes]:
        """What this node tells others of the set at `key`: RELAYED_PER_VIA of what each other member brought."""
        _, most = self.storage.occupancy(key).vias.largest
        if most <= RELAYED_PER_VIA:
            return self.ordered(key).envelopes
        now = self._clock()
        rows = self.storage.some_of_each_via(key, RELAYED_PER_VIA)
        return [row.envelope for row in rows if row.expiry > now]

    def offer(self, key: bytes, envelopes: Sequence[bytes], via: bytes = UNPROVEN) -> list[Verdict]:
        """Take records from the peer `via`, each judged on its own, and keep them in one transaction. Never raises for
        what a peer sent."""
        changes: list[Change] = []
        verdicts: list[Verdict] = []
        with self.storage.transaction():
            for envelope in envelopes:
                outcome = self._judged(key, envelope, via)
                if isinstance(outcome, Change):
                    self.storage.put([outcome.row], gone=outcome.gone)
                    changes.append(outcome)
                    outcome = Verdict.KEPT
                verdicts.append(outcome)
        self._follow(changes)
        return verdicts

    def _judged(self, key: bytes, envelope: bytes, via: bytes) -> Change | Verdict:
        now = self._clock()
        try:
            signed = reopened(envelope)
            self._judge(key, signed)
            row = _row(key, signed, via=via, ours=False, spread_at=now)
            before = self.storage.in_slot(key, row.slot)
            if before is not None and before.envelope == envelope:
                if now - before.spread_at >= SPREAD_NOTED_S:
                    self.storage.mark_spread([before], now)
                return Verdict.KEPT
            if not self._allowance.take(via, now):
                return Verdict.REFUSED
            outcome = self._change(row, signed, before)
            if outcome is not Verdict.REFUSED:
                self._verified.check(signed)
            return outcome
        except InvalidRecord:
            return Verdict.REFUSED

    def keep(self, key: bytes, signed: Signed, *, ours: bool, spread_at: float, via: bytes = OWN) -> Verdict:
        """Merge one checked record into the set at `key`. A record that is ours stays ours when a peer echoes it."""
        row = _row(key, signed, via=OWN if ours else via, ours=ours, spread_at=spread_at)
        outcome = self._change(row, signed, self.storage.in_slot(key, row.slot))
        if isinstance(outcome, Verdict):
            return outcome
        self.storage.put([outcome.row], gone=outcome.gone)
        self._follow([outcome])
        return Verdict.KEPT

    def _change(self, row: Row, signed: Signed, before: Row | None) -> Change | Verdict:
        """What is to be done about a record in whose slot `before` stands."""
        if before is None:
            room = self._room_for(row, signed.record)
            return Verdict.REFUSED if room is None else Change(room[0], signed, room[1])
        if before.rank > row.rank and not rules.is_ahead(before.seq, self._clock()):
            return Verdict.SUPERSEDED
        ours = row.ours or (before.ours and before.envelope == row.envelope)
        return Change(row._replace(ours=ours, via=_brought_by(row, before, ours=ours)), signed, [before])

    def _follow(self, changes: Sequence[Change]) -> None:
        """Tell what is kept in memory of changes that are on disk."""
        for row, signed, gone in changes:
            for one in gone:
                self._ordered.remove(one.key, one.envelope)
                if one.slot == row.slot and one.rank > row.rank:
                    self.views.forget(one.key)
            self._ordered.add(row.key, row.envelope, row.expiry)
            self.views.heard(row.key, signed)

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
