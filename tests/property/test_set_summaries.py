"""Summaries of sets: two that differ are told apart wherever they differ, and changes in place leave no trace."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from dht import ordering

envelopes = st.sets(st.integers(0, 2000), max_size=400).map(lambda numbers: {b"envelope %d" % n for n in numbers})


def missing(ours: ordering.OrderedSet, theirs: ordering.OrderedSet, low: int, high: int) -> set[bytes]:
    """Shortened positions of theirs that we lack, found as a reader finds them."""
    told = theirs.summary(low, high)
    if not told.parts:
        have = {p[: ordering.SHORT_BYTES] for p in ours.positions}
        return set(ordering.shorts(told.positions)) - have
    found: set[bytes] = set()
    for part, digest in zip(ordering.parts_of(low, high), ordering.shorts(told.parts), strict=True):
        if digest != ours.fingerprint_of(*part):
            found |= missing(ours, theirs, *part)
    return found


@given(envelopes, envelopes)
def test_a_reader_finds_exactly_what_it_lacks(a: set[bytes], b: set[bytes]) -> None:
    ours, theirs = ordering.OrderedSet(a), ordering.OrderedSet(b)
    assert missing(ours, theirs, *ordering.EVERYWHERE) == {ordering.position(e)[: ordering.SHORT_BYTES] for e in b - a}
    assert (ours.fingerprint == theirs.fingerprint) == (a == b)


@given(envelopes, envelopes)
def test_adding_and_removing_in_place_gives_the_set_made_at_once(a: set[bytes], b: set[bytes]) -> None:
    changed = ordering.OrderedSet(a)
    changed.summary(*ordering.EVERYWHERE)
    for one in b - a:
        changed.add(one)
    changed.summary(*ordering.EVERYWHERE)
    assert all(changed.remove(one) for one in a - b)
    assert not changed.remove(b"never there")
    made = ordering.OrderedSet(b)
    told = changed.summary(*ordering.EVERYWHERE)
    assert (changed.positions, changed.envelopes, told) == (
        made.positions,
        made.envelopes,
        made.summary(*ordering.EVERYWHERE),
    )
    if told.parts:
        assert ordering.shorts(told.parts) == [
            made.fingerprint_of(*part) for part in ordering.parts_of(*ordering.EVERYWHERE)
        ]


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_parts_cover_their_range_without_overlap(x: int, y: int) -> None:
    low, high = min(x, y), max(x, y)
    parts = [part for part in ordering.parts_of(low, high) if part[0] <= part[1]]
    assert (parts[0][0], parts[-1][1]) == (low, high)
    assert all(before[1] + 1 == after[0] for before, after in pairwise(parts))


@given(envelopes)
def test_an_envelope_is_on_the_page_after_the_cursor_before_its_position(a: set[bytes]) -> None:
    held = ordering.OrderedSet(a)
    for envelope in list(a)[:20]:
        page, _ = held.page(ordering.cursor_before(ordering.position(envelope)[: ordering.SHORT_BYTES]), 1000)
        assert envelope in page
