from __future__ import annotations

from itertools import pairwise

import pytest

from dht import ordering


def test_pages_cover_a_set_once_within_the_budget() -> None:
    envelopes = [bytes([i]) * (100 + 20 * i) for i in range(40)]
    ordered = ordering.OrderedSet(envelopes)
    cursor, seen, pages = b"", [], 0
    while cursor is not None:
        taken, cursor = ordered.page(cursor, 1000)
        assert sum(len(e) + ordering.ENVELOPE_HEADER for e in taken) <= 1000
        seen += taken
        pages += 1
    assert sorted(seen) == sorted(envelopes)
    assert pages > 10


def test_a_page_without_room_is_empty_and_says_that_there_is_more() -> None:
    assert ordering.OrderedSet([b"x" * 500]).page(b"", 100) == ([], b"")
    assert ordering.OrderedSet([]).page(b"", 100) == ([], None)


def test_batches_hold_everything_in_order() -> None:
    envelopes = [bytes([i]) * 400 for i in range(7)]
    lists = ordering.batches(envelopes, 1000)
    assert [len(one) for one in lists] == [2, 2, 2, 1]
    assert [e for one in lists for e in one] == envelopes
    assert ordering.batches([], 1000) == []


def test_fingerprints_tell_sets_apart_and_ignore_order() -> None:
    first, second, other = (ordering.OrderedSet(e).fingerprint for e in ([b"a", b"b"], [b"b", b"a"], [b"a"]))
    assert first == second != other


@pytest.mark.parametrize("count", [3, 500])
def test_a_summary_tells_what_its_set_lacks(count: int) -> None:
    held = [f"held {i}".encode() for i in range(count)]
    told = ordering.OrderedSet(held).summary(*ordering.EVERYWHERE)
    assert bool(told.parts) == (count == 500)
    assert ordering.lacking(held, told.parts, told.positions) == []
    lacking = ordering.lacking([*held, b"news"], told.parts, told.positions)
    assert b"news" in lacking
    assert len(lacking) <= 1 + count // 8


@pytest.mark.parametrize("after", [b"", b"\x02" + bytes(7), b"\x80" + bytes(7), b"\xff" * 8])
def test_stretches_cover_every_position_after_the_cursor_once(after: bytes) -> None:
    parts = ordering.stretches(after, 16)
    assert parts[0][0] == after
    assert parts[-1][1] == b"\xff" * 8
    assert all(end == start for (_, end), (start, _) in pairwise(parts))


def test_there_are_no_more_stretches_than_pages() -> None:
    assert len(ordering.stretches(b"\x80" + bytes(7), 16)) == 1
    assert len(ordering.stretches(b"\x20" + bytes(7), 16)) == 7
    assert len(ordering.stretches(b"\x01" + bytes(7), 16)) == 16
