"""What this node holds for the mesh: the rules of `dht.rules` applied to the rows of `dht.storage`."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache

from dht import rules
from dht.rules import Verdict
from dht.storage import Row, Storage
from dht.views import Views
from protocol.problems import InvalidRecord
from protocol.records import Signed, verify

MAX_ROWS_PER_OWNER = 50_000
"""Rows that one signing key may occupy on this node."""
MAX_ROWS = 500_000
"""Rows that this node keeps in all: some 300 MB."""
ORDERED_CACHE = 64
"""Sets kept in the order of pages."""
COUNTED_CACHE = 4096
"""Keys whose records are counted by owner."""
VERIFIED_CACHE = 16_384
"""Envelopes whose signature is remembered as good: a check costs about 130 us."""


class Replica:
    """`clock` gives Unix seconds."""

    def __init__(self, storage: Storage, clock: Callable[[], float]) -> None:
        self.storage = storage
        self._clock = clock
        self._verified = lru_cache(maxsize=VERIFIED_CACHE)(verify)
        self._ordered: OrderedDict[bytes, tuple[float, rules.OrderedSet]] = OrderedDict()
        self._counts: OrderedDict[bytes, Counter[bytes]] = OrderedDict()
        """At some keys, how many records each owner has: an upper bound, since expired ones are not taken out."""
        self.views = Views()
        """What this node has read at other nodes."""

    def check(self, key: bytes, envelope: bytes) -> Signed:
        """A record that may stand at `key` now, if only in the slot of its older version. Raises InvalidRecord."""
        signed = self._verified(envelope)
        rules.accept(signed.record, self._clock())
        if not rules.may_stand(signed.record, key):
            raise InvalidRecord("the record does not name the key at which it was offered")
        return signed

    def held(self, key: bytes) -> list[Signed]:
        """Unexpired records at `key`, tombstones included."""
        now = self._clock()
        return [self._verified(row.envelope) for row in self.storage.at(key) if row.expiry > now]

    def ordered(self, key: bytes) -> rules.OrderedSet:
        """The same, ordered for answers to peers. Kept for a while: one reader asks for many pages."""
        now = self._clock()
        kept = self._ordered.get(key)
        if kept is not None and now < kept[0]:
            return kept[1]
        rows = [row for row in self.storage.at(key) if row.expiry > now]
        found = rules.OrderedSet(row.envelope for row in rows)
        self._ordered[key] = min((row.expiry for row in rows), default=now), found
        if len(self._ordered) > ORDERED_CACHE:
            self._ordered.popitem(last=False)
        return found

    def offer(self, key: bytes, envelopes: Sequence[bytes]) -> list[Verdict]:
        """Take records from a peer, each judged on its own. Never raises for what a peer sent."""
        return [self._offer(key, envelope) for envelope in envelopes]

    def _offer(self, key: bytes, envelope: bytes) -> Verdict:
        try:
            return self.keep(key, self.check(key, envelope), ours=False, spread_at=self._clock())
        except InvalidRecord:
            return Verdict.REFUSED

    def keep(self, key: bytes, signed: Signed, *, ours: bool, spread_at: float) -> Verdict:
        """Merge one checked record into the set at `key`. A record that is ours stays ours when a peer echoes it."""
        full = self.storage.rows() >= MAX_ROWS or self.storage.owned_by(signed.public_key) >= MAX_ROWS_PER_OWNER
        if full and not ours:
            return Verdict.REFUSED
        place = rules.slot(signed.record)
        before = self.storage.in_slot(key, place)
        if before is None and not (rules.bound_to(signed.record, key) and self._has_room(key, signed)):
            return Verdict.REFUSED
        if before is not None and rules.supersedes([self._verified(before.envelope)], signed):
            return Verdict.SUPERSEDED
        is_echo = before is not None and before.envelope == signed.envelope
        ours = ours or (is_echo and before is not None and before.ours)
        self.storage.put([Row(key, place, signed.public_key, signed.record.expiry, ours, spread_at, signed.envelope)])
        if not is_echo:
            self._changed(key, before, signed)
        return Verdict.KEPT

    def _changed(self, key: bytes, before: Row | None, signed: Signed) -> None:
        self.views.heard(key, signed)
        if before is None and key in self._counts:
            self._counts[key][signed.public_key] += 1
        if key in self._ordered:
            until, ordered = self._ordered[key]
            if before is not None:
                ordered.remove(before.envelope)
            ordered.add(signed.envelope)
            self._ordered[key] = min(until, signed.record.expiry), ordered

    def outranks(self, key: bytes, signed: Signed) -> bool:
        """True if something of higher rank is held in the record's slot."""
        before = self.storage.in_slot(key, rules.slot(signed.record))
        if before is None or before.expiry <= self._clock():
            return False
        return rules.supersedes([self._verified(before.envelope)], signed)

    def _has_room(self, key: bytes, signed: Signed) -> bool:
        """True if one more slot fits; a full set makes room for a record of higher rank, as the merge does."""
        counts = self._counted(key)
        if counts.total() < rules.MAX_PER_KEY and counts[signed.public_key] < rules.MAX_PER_OWNER[type(signed.record)]:
            return True
        self._counts.pop(key, None)
        self._ordered.pop(key, None)
        rows = self.storage.at(key)
        merged = rules.merge([self._verified(row.envelope) for row in rows], [signed])
        slots = {rules.slot(one.record) for one in merged}
        self.storage.drop(key, [row.slot for row in rows if row.slot not in slots])
        return rules.slot(signed.record) in slots

    def _counted(self, key: bytes) -> Counter[bytes]:
        if key not in self._counts:
            self._counts[key] = Counter(self.storage.owners_at(key))
            if len(self._counts) > COUNTED_CACHE:
                self._counts.popitem(last=False)
        return self._counts[key]
