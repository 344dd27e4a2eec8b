"""Long lists in pages. Pure.

A cursor is a position in the list's order, not a count of what came before: whatever is published or removed while a
client pages, what stays where it is comes exactly once, and what is new before the cursor waits for the next look.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Struct

from protocol import base64url
from protocol.problems import BadCursor, BadLimit

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000
"""Of services, the largest answers there are: 1.5 MB at the most."""
MAX_CURSOR = 1024
"""Characters; one of services has some 300."""

_TOO_LONG = 10
"""Digits; Python refuses to read thousands."""

T = TypeVar("T")
P = TypeVar("P", bound=tuple[Any, ...])


class PageRequest(Struct, frozen=True):
    """`cursor`: what the page before gave; None: the first page."""

    limit: int = DEFAULT_LIMIT
    cursor: str | None = None

    @classmethod
    def read(cls, limit: str | None, cursor: str | None) -> PageRequest:
        """Of a query. Raises BadLimit; what is wrong with a cursor shows when it is used (`after`)."""
        if limit is None:
            return cls(cursor=cursor)
        number = count_of(limit, MAX_LIMIT)
        if number is None:
            raise BadLimit(f"limit={limit[:20]!r} is not a number from 1 to {MAX_LIMIT}", fix=NEXT_PAGE)
        return cls(number, cursor)

    def after(self, order: msgspec.msgpack.Decoder[P]) -> P | None:
        """The position from which to go on. Raises BadCursor unless it is one of this order."""
        if self.cursor is None:
            return None
        try:
            if len(self.cursor) > MAX_CURSOR:
                raise ValueError
            return order.decode(base64url.decode(self.cursor))
        except (ValueError, msgspec.MsgspecError):
            raise BadCursor(f"{self.cursor[:40]!r} is not a cursor of this list", fix=BEGIN_ANEW) from None


def count_of(text: str, most: int) -> int | None:
    """A number from 1 to `most` in a query; None: it is none. Zeros before it are no way around."""
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < _TOO_LONG else 0
    return number if 1 <= number <= most else None


NEXT_PAGE = "For more, follow the link that each page gives to the next one."
BEGIN_ANEW = "Ask without a cursor for the first page, and go on with the link that it gives."


class Page(Struct, Generic[T], frozen=True):
    """`total`: of all pages, now. `cursor`: of the next page; None: there is none."""

    items: Sequence[T]
    total: int
    cursor: str | None = None


def page_of(
    items: Sequence[T], position: Callable[[T], P], limit: int, after: P | None, walk: tuple[Any, ...] = ()
) -> Page[T]:
    """The first `limit` items beyond `after`. `position` orders them and is different for each.

    `walk`: what else the next page must know; it stands before the position in the cursor."""
    positions = list(map(position, items))
    left = [n for n, at in enumerate(positions) if after is None or at > after]
    found = heapq.nsmallest(limit, left, key=positions.__getitem__)
    cursor = None if len(found) == len(left) else cursor_at(*walk, *positions[found[-1]])
    return Page([items[n] for n in found], len(items), cursor)


def cursor_at(*position: Any) -> str:
    return base64url.encode(msgspec.msgpack.encode(position))
