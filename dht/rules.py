"""What a node may keep at a key, and which record replaces which. Pure.

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

from collections import Counter
from collections.abc import Iterable
from enum import IntEnum

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
