"""Whatever comes, goes and expires: the set at a key is what would be read anew."""

from __future__ import annotations

from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from dht import ordering
from dht.records import ordered_sets
from dht.records.ordered_sets import OrderedSets

KEYS = [b"k", b"l", b"m"]
ENVELOPES = [b"envelope %d" % n for n in range(8)]
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from(KEYS), st.sampled_from(ENVELOPES)),
        st.tuples(st.just("remove"), st.sampled_from(KEYS), st.sampled_from(ENVELOPES)),
        st.tuples(st.just("ask"), st.sampled_from(KEYS), st.none()),
        st.tuples(st.just("wait"), st.none(), st.none()),
    ),
    max_size=80,
)


def expiry_of(envelope: bytes) -> int:
    """An envelope always says the same."""
    return 3 + 5 * ENVELOPES.index(envelope)


@given(steps)
def test_sets_are_what_would_be_read_anew(given_steps: list[tuple[str, bytes | None, bytes | None]]) -> None:
    sets, now = OrderedSets(), 0
    held: dict[bytes, set[bytes]] = {key: set() for key in KEYS}
    with patch.multiple(ordered_sets, MAX_SETS=2, MAX_ROWS=10):
        for what, key, envelope in given_steps:
            if what == "wait":
                now += 1
            elif key is not None and envelope is not None:
                sets.remove(key, envelope)
                held[key].discard(envelope)
                if what == "add" and expiry_of(envelope) > now:
                    sets.add(key, envelope, expiry_of(envelope))
                    held[key].add(envelope)
            elif key is not None:
                rows = [(e, expiry_of(e)) for e in held[key] if expiry_of(e) > now]
                known = sets.get(key, now)
                found = sets.keep(key, rows) if known is None else known
                made = ordering.OrderedSet(e for e, _ in rows)
                assert (found.envelopes, found.fingerprint) == (made.envelopes, made.fingerprint)
            assert len(sets._sets) <= 2
            assert sets._rows == sum(len(kept) for kept in sets._sets.values())


def test_a_record_that_is_replaced_for_ever_takes_no_more_room() -> None:
    sets = OrderedSets()
    sets.keep(b"k", [(b"first", 1000)])
    for n in range(500):
        sets.add(b"k", b"record %d" % n, 1000)
        sets.remove(b"k", b"record %d" % n)
    assert len(sets._sets[b"k"]._heap) < 20


def test_that_a_set_is_empty_is_remembered_until_something_comes() -> None:
    sets = OrderedSets()
    empty = sets.keep(b"k", [])
    assert sets.get(b"k", 1e12) is empty
    sets.add(b"k", b"envelope", 2)
    assert empty.envelopes == [b"envelope"]
    assert sets.get(b"unknown", 0.0) is None
