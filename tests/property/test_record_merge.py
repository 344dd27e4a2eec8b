"""The merge of record sets is commutative, associative and idempotent, within its bounds too."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import permutations
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from dht import rules
from protocol.identifiers import node_id
from protocol.records import ProviderRecord, RegionRecord, ServiceRecord, Signed, is_withdrawn

KEYS = [bytes([i]) * 32 for i in range(3)]
DIGESTS = ["sha256:" + c * 64 for c in "ab"]
EXPIRY = 2_000_000_000

services = st.builds(
    ServiceRecord,
    digest=st.sampled_from(DIGESTS),
    id=st.sampled_from(["a", "b", "c"]),
    name=st.sampled_from(["x", "y"]),
    description=st.just(""),
    category=st.just("/c"),
    inputs=st.just(()),
    outputs=st.just(()),
    size=st.just(1),
    mem=st.just(1),
    publisher=st.sampled_from(KEYS),
    version=st.just(""),
    seq=st.integers(0, 3),
    expiry=st.just(EXPIRY),
    withdrawn=st.booleans(),
)
nodes = st.sampled_from([node_id(k) for k in KEYS])
providers = st.builds(
    ProviderRecord, st.just(DIGESTS[0]), nodes, st.just(("h:1",)), st.integers(0, 3), st.just(EXPIRY), st.booleans()
)
regions = st.builds(
    RegionRecord,
    region=st.sampled_from(["eu", "us"]),
    node=nodes,
    addresses=st.just(("h:1",)),
    agents=st.integers(0, 1),
    memory_total=st.just(1),
    memory_free=st.just(1),
    seq=st.integers(0, 3),
    expiry=st.just(EXPIRY),
)


def signed(record: ServiceRecord | ProviderRecord | RegionRecord) -> Signed:
    """As `verify` would give it: the merge trusts signatures that were checked before."""
    key = record.publisher if isinstance(record, ServiceRecord) else next(k for k in KEYS if node_id(k) == record.node)
    return Signed(record, key, repr(record).encode())


sets = st.lists(st.one_of(services, providers, regions).map(signed), max_size=12)
tight = patch.multiple(rules, MAX_PER_OWNER={ServiceRecord: 2, ProviderRecord: 1, RegionRecord: 1}, MAX_PER_KEY=4)


@given(sets, sets)
def test_commutative(a: list[Signed], b: list[Signed]) -> None:
    assert rules.merge(a, b) == rules.merge(b, a)
    with tight:
        assert rules.merge(a, b) == rules.merge(b, a)


@given(sets, sets, sets)
def test_associative_and_independent_of_arrival(a: list[Signed], b: list[Signed], c: list[Signed]) -> None:
    for bounds in (False, True):
        with tight if bounds else nullcontext():
            whole = rules.merge(a, b, c)
            for x, y, z in permutations((a, b, c)):
                assert rules.merge(rules.merge(x, y), z) == rules.merge(x, rules.merge(y, z)) == whole


@given(sets, sets)
def test_idempotent(a: list[Signed], b: list[Signed]) -> None:
    with tight:
        once = rules.merge(a, b)
        assert rules.merge(once, once) == rules.merge(once, a) == rules.merge(once, b) == once


@given(sets)
def test_what_supersedes_is_what_the_merge_prefers(a: list[Signed]) -> None:
    kept = {s.envelope for s in rules.merge(a)}
    for one in a:
        if rules.supersedes(a, one):
            assert one.envelope not in kept


@given(sets)
def test_readers_see_no_tombstone_and_at_most_one_record_per_slot(a: list[Signed]) -> None:
    shown = rules.visible(a, EXPIRY - 1)
    slots = [rules.slot(s.record) for s in shown]
    assert len(slots) == len(set(slots))
    assert not any(is_withdrawn(s.record) for s in shown)
    assert rules.visible(a, EXPIRY) == []
