from __future__ import annotations

import pytest

from dht import rules
from protocol.identifiers import node_id, record_key
from protocol.problems import BadRequest, InvalidRecord
from protocol.records import ProviderRecord, RegionRecord, Signed, raw_public_key, sign
from tests.dht_mesh import identity, service

NOW = 1_800_000_000.0
MS = int(NOW * 1000)
DIGEST = "sha256:" + "a" * 64


def provider(number: int = 1, *, seq: int = MS, expiry: float = NOW + 1800, withdrawn: bool = False) -> Signed:
    key = identity(number)
    node = node_id(raw_public_key(key))
    return sign(ProviderRecord(DIGEST, node, ("127.0.0.1:1",), seq, int(expiry), withdrawn), key)


def region(path: str = "eu/de", *, seq: int = MS, expiry: float = NOW + 60) -> Signed:
    key = identity(1)
    return sign(RegionRecord(path, node_id(raw_public_key(key)), ("127.0.0.1:1",), 1, 10, 10, seq, int(expiry)), key)


@pytest.mark.parametrize(
    "signed",
    [
        service(seq=MS, expiry=NOW + 1),
        service(seq=MS + 299_000, expiry=NOW + 400 * 86_400),
        provider(expiry=NOW + 3600),
        region(expiry=NOW + 600),
        service(seq=MS, expiry=NOW + 400 * 86_400, withdrawn=True),
    ],
    ids=["nearly expired", "a clock 299 s ahead", "provider", "region", "tombstone"],
)
def test_timely_records_are_accepted(signed: Signed) -> None:
    rules.accept(signed.record, NOW)


@pytest.mark.parametrize(
    ("signed", "why"),
    [
        (service(seq=MS, expiry=NOW), "expired"),
        (service(seq=MS, expiry=NOW + 401 * 86_400), "later than its date allows"),
        (service(seq=MS - 86_400_000, expiry=NOW + 400 * 86_400), "later than its date allows"),
        (service(seq=MS, expiry=NOW + 399 * 86_400, withdrawn=True), "before the last record that it may hide"),
        (provider(expiry=NOW + 1800, withdrawn=True), "before the last record that it may hide"),
        (service(seq=MS + 301_000, expiry=NOW + 60), "in the future"),
        (provider(expiry=NOW + 7200), "later than its date allows"),
        (region(expiry=NOW + 1200), "later than its date allows"),
    ],
)
def test_untimely_records_are_refused(signed: Signed, why: str) -> None:
    with pytest.raises(InvalidRecord, match=why):
        rules.accept(signed.record, NOW)


def test_a_record_is_bound_to_its_own_names_and_no_other() -> None:
    signed = service("od01", category="/image/faces")
    named = ["id:od01", "name:name-od01", "category:/", "category:/image", "category:/image/faces"]
    assert all(rules.bound_to(signed.record, record_key(name)) for name in named)
    assert not any(rules.bound_to(signed.record, record_key(n)) for n in ["id:od02", "category:/text", "od01"])


def test_the_newest_per_slot_stays_and_is_listed_first() -> None:
    a1, a2, b1 = service("a", seq=1), service("a", seq=3, content="v2"), service("b", seq=2)
    assert rules.merge([a1, b1], [a2]) == [a2, b1]


def test_a_tombstone_hides_what_it_withdraws_and_is_hidden_by_a_newer_version() -> None:
    live = service("a", seq=1, expiry=NOW + 60)
    dead = service("a", seq=2, expiry=NOW + 60, withdrawn=True)
    again = service("a", seq=3, expiry=NOW + 60)
    assert rules.visible([live, dead], NOW) == []
    assert rules.visible([dead, again, live], NOW) == [again]


def test_of_two_records_with_one_seq_a_tombstone_wins() -> None:
    live, dead = service("a", seq=1, expiry=NOW + 60), service("a", seq=1, expiry=NOW + 60, withdrawn=True)
    assert rules.merge([live], [dead]) == rules.merge([dead], [live]) == [dead]


def test_expired_records_are_not_visible() -> None:
    signed = service("a", seq=1, expiry=NOW + 60)
    assert rules.visible([signed], NOW + 59) == [signed]
    assert rules.visible([signed], NOW + 60) == []


def test_one_provider_record_per_node() -> None:
    old, new, other = provider(1, seq=MS), provider(1, seq=MS + 1), provider(2)
    assert {s.envelope for s in rules.merge([old, other, new])} == {new.envelope, other.envelope}
    assert rules.visible([new, provider(1, seq=MS + 2, withdrawn=True)], NOW) == []


def test_a_publisher_keeps_a_bounded_number_of_its_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rules.MAX_PER_OWNER, type(service().record), 3)
    mine = [service(f"s{i}", seq=i) for i in range(6)]
    theirs = [service("x", seq=0, key=identity(9))]
    assert rules.merge(mine, theirs) == [mine[5], mine[4], mine[3], theirs[0]]


@pytest.mark.parametrize("name", ["", "id", "planet:mars", "content:x"])
def test_names_of_other_kinds_are_refused(name: str) -> None:
    with pytest.raises(BadRequest):
        rules.check_name(name, *rules.SERVICE_NAMES)


def test_the_children_of_the_top_have_a_name() -> None:
    assert rules.check_name("children:", *rules.REGION_NAMES) == "children:"
    with pytest.raises(BadRequest):
        rules.check_name("region:", *rules.REGION_NAMES)


def test_a_tombstone_competes_at_its_own_version_only() -> None:
    live, tombstone = service(seq=MS).record, service(seq=MS + 1, withdrawn=True).record
    keys = [record_key(name) for name in live.names]
    assert all(rules.competes_at(key, live) for key in keys)
    assert [key for key in keys if rules.competes_at(key, tombstone)] == [record_key(live.names[0])]


def test_the_next_seq_is_the_clock_but_above_what_the_same_key_said() -> None:
    assert rules.next_seq(None, NOW) == MS
    assert rules.next_seq(MS + 7, NOW) == MS + 8
    assert rules.next_seq(MS + 7, NOW + 60) == MS + 60_000
    assert rules.next_seq(MS + 299_999, NOW) == MS + 300_000
    assert rules.next_seq(MS + 300_000, NOW) == MS, "what nobody would take is no reason to go beyond it"
