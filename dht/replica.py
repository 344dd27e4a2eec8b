"""What this node holds for the mesh: the rules of `dht.rules` applied to the rows of `dht.storage`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import lru_cache

from dht import rules
from dht.storage import Row, Storage
from protocol.problems import InvalidRecord
from protocol.records import Signed, verify

MAX_ROWS_PER_OWNER = 50_000
"""Rows that one signing key may occupy on this node."""
VERIFIED_CACHE = 8192
"""Envelopes whose signature is remembered as good: a check costs about 130 us."""


class Verdict(IntEnum):
    """What became of an offered record; the numbers travel in datagrams."""

    KEPT = 0
    SUPERSEDED = 1
    REFUSED = 2


class Replica:
    """`clock` gives Unix seconds."""

    def __init__(self, storage: Storage, clock: Callable[[], float]) -> None:
        self.storage = storage
        self._clock = clock
        self._verified = lru_cache(maxsize=VERIFIED_CACHE)(verify)

    def check(self, key: bytes, envelope: bytes) -> Signed:
        """A record that may stand at `key` now. Raises InvalidRecord."""
        signed = self._verified(envelope)
        rules.accept(signed.record, self._clock())
        if not rules.bound_to(signed.record, key):
            raise InvalidRecord("the record does not name the key at which it was offered")
        return signed

    def held(self, key: bytes) -> list[Signed]:
        """Unexpired records at `key`, tombstones included."""
        now = self._clock()
        return [self._verified(row.envelope) for row in self.storage.at(key) if row.expiry > now]

    def envelopes(self, key: bytes) -> list[bytes]:
        """The same as bytes, for answers to peers."""
        now = self._clock()
        return [row.envelope for row in self.storage.at(key) if row.expiry > now]

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
        if self.storage.owned_by(signed.public_key) >= MAX_ROWS_PER_OWNER:
            return Verdict.REFUSED
        rows = {row.slot: row for row in self.storage.at(key)}
        held = [self._verified(row.envelope) for row in rows.values()]
        if rules.supersedes(held, signed):
            return Verdict.SUPERSEDED
        merged = {rules.slot(one.record) for one in rules.merge(held, [signed])}
        place = rules.slot(signed.record)
        if place not in merged:
            return Verdict.REFUSED
        if place in rows and rows[place].envelope == signed.envelope:
            ours = ours or rows[place].ours
        self.storage.put([Row(key, place, signed.public_key, signed.record.expiry, ours, spread_at, signed.envelope)])
        self.storage.drop(key, rows.keys() - merged)
        return Verdict.KEPT
