"""Whoever comes in whatever order: the bounds hold, the counts are true, and a fair share is never lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from dht import rules, seats
from dht.records.replica import Replica
from dht.records.storage import Storage, opened_storage
from dht.rules import Verdict
from dht.seats import OWN
from protocol.identifiers import record_key
from protocol.records import ServiceRecord, Signed
from tests.dht_mesh import identity, service

KEY = record_key("category:/")
NOW = 1_800_000_000.0
MS = int(NOW * 1000)
PER_KEY, PER_VIA, PER_OWNER = 6, 4, 3
MEMBERS = [b"m", b"n", b"o"]
RECORDS = {
    (owner, number, seq): service(f"s{number}", seq=MS + seq, expiry=NOW + 60, key=identity(owner))
    for owner in range(5)
    for number in range(4)
    for seq in (1, 2)
}
offers = st.lists(st.tuples(st.sampled_from(sorted(RECORDS)), st.sampled_from(MEMBERS)), max_size=40)


@contextmanager
def tight_replica() -> Iterator[Replica]:
    bounds = patch.multiple(seats, MAX_PER_KEY=PER_KEY, MAX_PER_VIA=PER_VIA)
    with bounds, patch.dict(rules.MAX_PER_OWNER, {ServiceRecord: PER_OWNER}), opened_storage(None) as storage:
        yield Replica(storage, lambda: NOW)


def counted(storage: Storage) -> tuple[Counter[bytes], Counter[bytes]]:
    rows = storage.at(KEY)
    return Counter(row.owner for row in rows), Counter(row.via for row in rows)


def offered(replica: Replica, chosen: tuple[int, int, int], via: bytes) -> Verdict:
    return replica.offer(KEY, [RECORDS[chosen].envelope], via)[0]


@given(offers)
def test_bounds_hold_and_counts_are_true(given_offers: list[tuple[tuple[int, int, int], bytes]]) -> None:
    with tight_replica() as replica:
        for chosen, via in given_offers:
            offered(replica, chosen, via)
            owners, vias = counted(replica.storage)
            at_key = replica.storage.occupancy(KEY)
            assert (at_key.total, at_key.owners) == (owners.total(), owners)
            assert [at_key.vias[m] for m in MEMBERS] == [vias[m] for m in MEMBERS]
            assert at_key.vias.largest[1] == max(vias.values(), default=0)
            assert owners.total() <= PER_KEY
            assert max(owners.values(), default=0) <= PER_OWNER
            assert max(vias.values(), default=0) <= PER_VIA


@given(offers)
def test_what_is_held_is_offered_again_in_vain(given_offers: list[tuple[tuple[int, int, int], bytes]]) -> None:
    with tight_replica() as replica:
        for chosen, via in given_offers:
            if offered(replica, chosen, via) is Verdict.KEPT:
                before = replica.storage.at(KEY)
                for again in MEMBERS:
                    assert offered(replica, chosen, again) is Verdict.KEPT
                assert replica.storage.at(KEY) == before


@given(st.lists(st.sampled_from(sorted(RECORDS)), max_size=30), offers)
def test_an_equal_share_is_never_lost(
    few: list[tuple[int, int, int]], given_offers: list[tuple[tuple[int, int, int], bytes]]
) -> None:
    """A member that brought no more than its equal share, each record of another signer, keeps all of it."""
    share = PER_KEY // (len(MEMBERS) + 1)
    with tight_replica() as replica:
        honest = [service(f"h{i}", seq=MS, expiry=NOW + 60, key=identity(100 + i)) for i in range(share)]
        for chosen in few:
            offered(replica, chosen, b"m")
        assert replica.offer(KEY, [s.envelope for s in honest], b"honest") == [Verdict.KEPT] * share
        for chosen, via in given_offers:
            offered(replica, chosen, via)
        assert {s.envelope for s in honest} <= {row.envelope for row in replica.storage.at(KEY)}


@given(offers, st.randoms())
def test_where_no_bound_is_met_order_does_not_matter(
    given_offers: list[tuple[tuple[int, int, int], bytes]], chance: st.DataObject
) -> None:
    shuffled = list(given_offers)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    sets: list[set[bytes]] = []
    for order in (given_offers, shuffled):
        with opened_storage(None) as storage:
            replica = Replica(storage, lambda: NOW)
            for chosen, via in order:
                offered(replica, chosen, via)
            sets.append({row.envelope for row in storage.at(KEY)})
    merged: list[Signed] = rules.merge([RECORDS[chosen] for chosen, _ in given_offers])
    assert sets[0] == sets[1] == {signed.envelope for signed in merged}


@given(offers)
def test_what_is_ours_stays(given_offers: list[tuple[tuple[int, int, int], bytes]]) -> None:
    own = [service(f"own{i}", seq=MS, expiry=NOW + 60, key=identity(200 + i)) for i in range(PER_KEY + 1)]
    with tight_replica() as replica:
        for number, (chosen, via) in enumerate(given_offers):
            offered(replica, chosen, via)
            if number < len(own):
                assert replica.keep(KEY, own[number], ours=True, spread_at=0.0) is Verdict.KEPT
        held = {row.envelope for row in replica.storage.at(KEY) if row.via == OWN}
        assert held == {s.envelope for s in own[: len(given_offers)]}
