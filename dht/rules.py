"""What a node may keep at a key, which record replaces which, and how a set is cut into answers. Pure.

A key holds a *set* of signed records. `merge` of two sets is commutative, associative and idempotent, so replicas that
heard the same records in any order, any number of times, hold the same set (where there is room for it: who may stand
at a crowded key depends on who brought what, and is no law of sets but of `dht.seats`). Every record has a *slot*; of
two records in one slot the higher rank stays:

    record    slot                        rank
    service   publisher, id, name         seq, then tombstone before live, then the envelope's bytes
    provider  node, content               the same
    region    node, region                the same

A service record that moved to another category may stand at the old category's key too, but only in the slot that its
own older version had there: it hides that one, and is not shown itself.

A tombstone takes its slot like any record and hides it for readers. It is bound to the keys of the version that it
withdraws: at `service:<digest>` no other version ever competes, so an older version stays findable by its digest after
a newer one took the slot at `id:`, `name:` and `category:`. A publisher who withdraws an old version and means to keep
the newer one signs the tombstone with the old version's seq plus one.

A record lives at most as long as its kind allows from its own date, and a tombstone exactly that long
(`protocol.records.check_lifetime`): so nothing that it hides can come back when it is forgotten.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from enum import IntEnum
from itertools import pairwise
from typing import NamedTuple

import msgspec

from protocol.identifiers import record_key
from protocol.problems import BadRequest, InvalidRecord
from protocol.records import (
    CLOCK_SKEW_S,
    ProviderRecord,
    Record,
    RegionRecord,
    ServiceRecord,
    Signed,
    check_lifetime,
    is_withdrawn,
)

MAX_PER_OWNER = {ServiceRecord: 1024, ProviderRecord: 16, RegionRecord: 16}
"""Records of one signing key at one key; those of the highest rank stay."""
MAX_PER_KEY = 16_384
"""Beyond it those who brought or hold the records share the room equally: see `dht.seats`."""
POSITION_BYTES = 8
"""Length of a cursor and of a fingerprint."""
EVERYWHERE = (0, (1 << 8 * POSITION_BYTES) - 1)
"""The range of all positions."""
SHORT_BYTES = 6
"""Positions and fingerprints of parts are told in so many bytes where many stand in one datagram."""
PARTS = 96
LISTED_WITH_CONTACTS = 96
LISTED = 128
"""A range of at most so many envelopes is told by its positions."""


class Verdict(IntEnum):
    """What became of an offered record; the numbers travel in datagrams."""

    KEPT = 0
    SUPERSEDED = 1
    REFUSED = 2


def check_name(name: str, *kinds: str) -> str:
    """Raises BadRequest unless `name` reads `<kind>:<what>` with one of these kinds."""
    kind, colon, what = name.partition(":")
    if kind not in kinds or not colon or (kind == "region" and not what):
        raise BadRequest(
            f"{name[:80]!r} names no such record", fix=f"Names here begin with {', '.join(kinds)} and ':'."
        )
    return name


SERVICE_NAMES = ("id", "name", "service", "category")
REGION_NAMES = ("region", "children")


def accept(record: Record, now: float) -> None:
    """Raises InvalidRecord if the record is expired, lives too long or (a tombstone) not long enough, or is dated so
    far ahead that it could not be replaced in time."""
    if record.expiry <= now:
        raise InvalidRecord(f"the record expired {now - record.expiry:.0f} s ago", fix="Sign it again.")
    check_lifetime(record)
    if is_ahead(record.seq, now):
        raise InvalidRecord(
            f"the record is dated {record.seq / 1000 - now:.0f} s in the future", fix="Set the signer's clock."
        )


def is_ahead(seq: int, now: float) -> bool:
    """Dated so far ahead that no node takes it. What a clock that was wrong for a while dated so must give way to what
    the same key signs now, or it would stand in its way until the date has come."""
    return seq > (now + CLOCK_SKEW_S) * 1000


def bound_to(record: Record, key: bytes) -> bool:
    """True if `key` is the key of one of the record's own names; nowhere else is it shown."""
    return any(record_key(name) == key for name in record.names)


def may_stand(record: Record, key: bytes) -> bool:
    """True if the record names `key`, or may stand there in the place of its own older version, which it hides."""
    return isinstance(record, ServiceRecord) or bound_to(record, key)


def left_behind(older: Signed, newer: Signed) -> set[str]:
    """Categories of an older version in which the newer one does not stand."""
    if slot(older.record) != slot(newer.record) or rank(older) >= rank(newer):
        return set()
    return {name for name in older.record.names if name.startswith("category:")} - set(newer.record.names)


def slot(record: Record) -> bytes:
    """What a newer record must have in common with an older one to replace it."""
    match record:
        case ServiceRecord():
            parts: tuple[str | bytes, ...] = ("service", record.publisher, record.id, record.name)
        case ProviderRecord():
            parts = ("provider", record.node, record.content)
        case RegionRecord():
            parts = ("region", record.node, record.region)
    return msgspec.msgpack.encode(parts)


def rank(signed: Signed) -> tuple[int, bool, bytes]:
    """Total order: the higher one replaces, and is listed first."""
    return signed.record.seq, is_withdrawn(signed.record), signed.envelope


def merge(*sets: Iterable[Signed]) -> list[Signed]:
    """One record per slot and MAX_PER_OWNER of one signer, highest rank first."""
    best: dict[bytes, Signed] = {}
    for signed in (one for records in sets for one in records):
        place = slot(signed.record)
        if place not in best or rank(signed) > rank(best[place]):
            best[place] = signed
    kept: list[Signed] = []
    per_owner: Counter[tuple[type[Record], bytes]] = Counter()
    for signed in sorted(best.values(), key=rank, reverse=True):
        owner = type(signed.record), signed.public_key
        if per_owner[owner] < MAX_PER_OWNER[type(signed.record)]:
            kept.append(signed)
        per_owner[owner] += 1
    return kept


def visible(records: Iterable[Signed], now: float) -> list[Signed]:
    """What a reader is shown: merged, unexpired, not withdrawn, newest first."""
    return [s for s in merge(records) if s.record.expiry > now and not is_withdrawn(s.record)]


def supersedes(held: Iterable[Signed], signed: Signed) -> bool:
    """True if a set already holds something of higher rank in the record's slot."""
    place = slot(signed.record)
    return any(slot(h.record) == place and rank(h) > rank(signed) for h in held)


def competes_at(key: bytes, record: Record) -> bool:
    """True if a newer record at `key` makes this one pointless: a tombstone counts where its version stands."""
    if isinstance(record, ServiceRecord) and record.withdrawn:
        return key == record_key(f"service:{record.digest}")
    return True


def next_seq(last: int | None, now: float) -> int:
    """The clock in ms, but always above the last that the same key signed, unless that is ahead of all clocks."""
    return max(int(now * 1000), -1 if last is None or is_ahead(last + 1, now) else last + 1)


def position(envelope: bytes) -> bytes:
    """Where an envelope stands in the order of pages: stable while others come and go."""
    return hashlib.sha256(envelope).digest()[:POSITION_BYTES]


class Places:
    """Positions in order: what is told of a set without its envelopes. Equal sets have equal fingerprints."""

    def __init__(self, positions: Iterable[bytes] = ()) -> None:
        self.positions = sorted(positions)
        self._whole: Summary | None = None
        self._parts: list[_Part | None] = [None] * PARTS
        """Of EVERYWHERE; None: to be hashed anew. So a change costs one part, not the whole."""

    @property
    def fingerprint(self) -> bytes:
        return self.summary(*EVERYWHERE).fingerprint

    def summary(self, low: int, high: int) -> Summary:
        """What is at the positions from `low` to `high`, both included: listed, or as fingerprints of its parts."""
        if (low, high) == EVERYWHERE:
            self._whole = self._whole or self._whole_summary()
            return self._whole
        chosen = self.places_between(low, high)
        if len(chosen) <= LISTED:
            return _listed(chosen)
        return Summary(_digest_of(chosen), b"".join(self._fingerprints(low, high)), b"")

    def differing(self, low: int, high: int, parts: bytes) -> list[tuple[int, int]]:
        """Which parts of the range another set, of which `parts` is told in a summary, does not hold alike."""
        theirs = zip(parts_of(low, high), shorts(parts), self._fingerprints(low, high), strict=False)
        return [part for part, digest, ours in theirs if digest != ours]

    def fingerprint_of(self, low: int, high: int) -> bytes:
        """The shortened fingerprint of what is from `low` to `high`, as in the parts of a summary."""
        return _digest_of(self.places_between(low, high))[:SHORT_BYTES]

    def places_between(self, low: int, high: int) -> list[bytes]:
        """The positions from `low` to `high`."""
        return self.positions[self._slice(low, high)]

    def _slice(self, low: int, high: int) -> slice:
        if low > high:
            return slice(0, 0)
        first = bisect_left(self.positions, low.to_bytes(POSITION_BYTES, "big"))
        return slice(first, bisect_right(self.positions, high.to_bytes(POSITION_BYTES, "big")))

    def _whole_summary(self) -> Summary:
        if len(self.positions) <= LISTED_WITH_CONTACTS:
            return _listed(self.positions)
        parts = [self._part(number) for number in range(PARTS)]
        return Summary(
            _digest_of([part.positions for part in parts]), b"".join(part.fingerprint for part in parts), b""
        )

    def _fingerprints(self, low: int, high: int) -> list[bytes]:
        if (low, high) == EVERYWHERE:
            return [self._part(number).fingerprint for number in range(PARTS)]
        return [self.fingerprint_of(*part) for part in parts_of(low, high)]

    def _part(self, number: int) -> _Part:
        part = self._parts[number]
        if part is None:
            first = bisect_left(self.positions, _PART_STARTS[number])
            last = number + 1 == PARTS
            end = len(self.positions) if last else bisect_left(self.positions, _PART_STARTS[number + 1])
            chosen = self.positions[first:end]
            part = self._parts[number] = _Part(b"".join(chosen), _digest_of(chosen)[:SHORT_BYTES])
        return part


class OrderedSet(Places):
    """Envelopes in the order of their positions."""

    def __init__(self, envelopes: Iterable[bytes]) -> None:
        ordered = sorted((position(e), e) for e in envelopes)
        super().__init__(place for place, _ in ordered)
        self.envelopes = [envelope for _, envelope in ordered]

    def add(self, envelope: bytes) -> None:
        place = position(envelope)
        at = bisect_right(self.positions, place)
        self.positions.insert(at, place)
        self.envelopes.insert(at, envelope)
        self._changed_at(place)

    def remove(self, envelope: bytes) -> bool:
        """False if it was not in the set."""
        place = position(envelope)
        at = bisect_left(self.positions, place)
        if at == len(self.envelopes) or self.envelopes[at] != envelope:
            return False
        del self.positions[at], self.envelopes[at]
        self._changed_at(place)
        return True

    def remove_all(self, envelopes: Container[bytes]) -> None:
        """In one pass: for many of them."""
        kept = [at for at, envelope in enumerate(self.envelopes) if envelope not in envelopes]
        self.positions = [self.positions[at] for at in kept]
        self.envelopes = [self.envelopes[at] for at in kept]
        self._whole, self._parts = None, [None] * PARTS

    def _changed_at(self, place: bytes) -> None:
        self._whole = None
        self._parts[bisect_right(_PART_STARTS, place) - 1] = None

    def between(self, low: int, high: int) -> list[bytes]:
        """The envelopes from `low` to `high`."""
        return self.envelopes[self._slice(low, high)]

    def after(self, place: bytes) -> list[bytes]:
        """The envelopes that come after a position (empty: all)."""
        return self.envelopes[bisect_right(self.positions, place) :]

    def page(self, cursor: bytes, budget: int) -> tuple[Sequence[bytes], bytes | None]:
        """Envelopes after `cursor` (empty: from the start) that fit in `budget` bytes of msgpack, and the next cursor.

        The next cursor is None after the last page. A page is empty when its first envelope does not fit.
        """
        first = after = bisect_right(self.positions, cursor)
        while after < len(self.envelopes):
            budget -= len(self.envelopes[after]) + ENVELOPE_HEADER
            if budget < 0:
                return self.envelopes[first:after], self.positions[after - 1] if after > first else cursor
            after += 1
        return self.envelopes[first:], None


class Summary(NamedTuple):
    """Of a range of positions: the fingerprint of the whole, and either the shortened fingerprints of its `PARTS`, or
    (if it holds few) its shortened positions; both as one string of `SHORT_BYTES` each."""

    fingerprint: bytes
    parts: bytes
    positions: bytes


class _Part(NamedTuple):
    """The positions of one of the PARTS of a set, joined, and their shortened fingerprint."""

    positions: bytes
    fingerprint: bytes


def parts_of(low: int, high: int) -> list[tuple[int, int]]:
    """The range cut into PARTS of nearly equal width, ends included."""
    span = high - low + 1
    return [(low + span * i // PARTS, low + span * (i + 1) // PARTS - 1) for i in range(PARTS)]


_PART_STARTS = [first.to_bytes(POSITION_BYTES, "big") for first, _ in parts_of(*EVERYWHERE)]


def shorts(joined: bytes) -> list[bytes]:
    return [joined[i : i + SHORT_BYTES] for i in range(0, len(joined), SHORT_BYTES)]


def lacking(envelopes: Sequence[bytes], parts: bytes, positions: bytes) -> list[bytes]:
    """Which envelopes a set may lack, by its summary EVERYWHERE: if that is true, all of them and perhaps some more."""
    ours = OrderedSet(envelopes)
    if not parts:
        held = set(shorts(positions))
        return [e for e in ours.envelopes if position(e)[:SHORT_BYTES] not in held]
    return [e for part in ours.differing(*EVERYWHERE, parts) for e in ours.between(*part)]


def lies_in(short: bytes, low: int, high: int) -> bool:
    """True if an envelope at this shortened position can be in the range."""
    first = int.from_bytes(short + bytes(POSITION_BYTES - SHORT_BYTES), "big")
    return first <= high and low < first + (1 << 8 * (POSITION_BYTES - SHORT_BYTES))


def cursor_before(short: bytes) -> bytes:
    """The cursor after which the envelope at this shortened position comes next, or nearly next."""
    return position_before(int.from_bytes(short + bytes(POSITION_BYTES - SHORT_BYTES), "big"))


def position_before(place: int) -> bytes:
    """The last position before one that is read as a number; empty: there is none."""
    return (place - 1).to_bytes(POSITION_BYTES, "big") if place else b""


def _listed(positions: Sequence[bytes]) -> Summary:
    return Summary(_digest_of(positions), b"", b"".join(p[:SHORT_BYTES] for p in positions))


def _digest_of(positions: Sequence[bytes]) -> bytes:
    return hashlib.sha256(b"".join(positions)).digest()[:POSITION_BYTES]


def stretches(cursor: bytes, most: int) -> list[tuple[bytes, bytes]]:
    """The positions after `cursor` cut into stretches `(after, up to)` that can be read at the same time.

    Positions are hashes, so how far the first page reached tells how many pages there are: one stretch for each,
    but at most `most`.
    """
    whole = 1 << 8 * POSITION_BYTES
    start = int.from_bytes(cursor, "big") if cursor else 0
    count = min(most, max(1, (whole - start) // start)) if start else most
    edges = [start + (whole - 1 - start) * i // count for i in range(count + 1)]
    cursors = [cursor, *(edge.to_bytes(POSITION_BYTES, "big") for edge in edges[1:])]
    return list(pairwise(cursors))


ENVELOPE_HEADER = 3
"""msgpack bytes before an envelope inside a list."""


def batches(envelopes: Iterable[bytes], budget: int) -> list[list[bytes]]:
    """Envelopes in lists that fit in `budget` bytes of msgpack each."""
    lists: list[list[bytes]] = []
    room = -1
    for envelope in envelopes:
        room -= len(envelope) + ENVELOPE_HEADER
        if room < 0:
            lists.append([])
            room = budget - len(envelope) - ENVELOPE_HEADER
        lists[-1].append(envelope)
    return lists
