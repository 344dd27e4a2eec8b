"""Pages: who follows the links gets everything that stayed, once and in order, whatever else changes meanwhile."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import base64url
from protocol.problems import BadCursor, BadLimit
from region_controller.paging import MAX_CURSOR, MAX_LIMIT, PageRequest, page_of

ORDER = msgspec.msgpack.Decoder(tuple[int, str])
Item = tuple[int, str]
items = st.sets(st.tuples(st.integers(0, 20), st.text("abc", max_size=2)), max_size=40)


def at(item: Item) -> Item:
    return item


@given(items, items, st.lists(st.tuples(items, items), max_size=6), st.integers(1, 7))
def test_what_stays_comes_once_and_in_order(
    stays: set[Item], others: set[Item], changes: list[tuple[set[Item], set[Item]]], limit: int
) -> None:
    shown: list[Item] = []
    asked, there, turn = PageRequest(limit), stays | others, 0
    while True:
        page = page_of(list(there), at, asked.limit, asked.after(ORDER))
        assert page.total == len(there)
        assert len(page.items) <= limit
        shown += page.items
        if page.cursor is None:
            break
        assert len(page.items) == limit
        asked = PageRequest(limit, page.cursor)
        if turn < len(changes):
            removed, added = changes[turn]
            there, turn = (there - removed | added) | stays, turn + 1
    assert shown == sorted(set(shown)), "in order, nothing twice"
    assert stays <= set(shown)


@given(st.text(max_size=40) | st.binary(max_size=40).map(base64url.encode))
def test_what_is_no_cursor_of_the_list_is_refused(text: str) -> None:
    position = None
    with suppress(BadCursor):
        position = PageRequest(cursor=text).after(ORDER)
    assert position is None or (isinstance(position[0], int) and isinstance(position[1], str))


def test_a_cursor_of_another_list_or_without_end_is_refused() -> None:
    page = page_of([("a", 1), ("b", 2)], lambda item: item, 1, None)
    for cursor in (page.cursor, "A" * (MAX_CURSOR + 1)):
        with pytest.raises(BadCursor):
            PageRequest(cursor=cursor).after(ORDER)


PADDED = "0" * 8 + "1"
"""Any digits after it make another number of it."""


@pytest.mark.parametrize(
    "limit",
    ["0", "-1", "", "ten", "²", "1e2", str(MAX_LIMIT + 1), "9" * 5000, PADDED + "0" * 6, PADDED + "0" * 5000],
)
def test_limits_are_numbers_in_bounds(limit: str) -> None:
    with pytest.raises(BadLimit, match=str(MAX_LIMIT)):
        PageRequest.read(limit, None)
    assert PageRequest.read("7", None).limit == 7
