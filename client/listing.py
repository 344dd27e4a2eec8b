"""Lists that a controller answers in pages (RFC 8288: each names the next one)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Generic, TypeVar
from urllib.parse import parse_qs, urlsplit

import aiohttp
from msgspec import Struct

from client.rest import CALL_TIMEOUT_S, Rest, retried
from protocol.instances import TOTAL_HEADER

PAGE = 1000
"""The most that a controller gives at once."""
MAX_LISTED = 100_000
"""A controller may have more, or pretend to: so many are asked for."""
_MAX_CURSOR = 4096

T = TypeVar("T")


class Listing(Struct, Generic[T], frozen=True):
    """`total`: how many the controller has, of which `items` may be the first ones only."""

    items: list[T]
    total: int


class _Page(Struct, Generic[T], frozen=True):
    items: list[T]
    total: int
    cursor: str | None


async def listed(
    rest: Rest,
    path: str,
    kind: type[T],
    query: Sequence[tuple[str, str]] = (),
    *,
    at_most: int | None = None,
    attempts: int,
) -> Listing[T]:
    """The first `at_most` items (None: all, up to MAX_LISTED), in as many calls as it takes, each of them `retried`."""
    items: list[T] = []
    async for page in _pages(rest, path, kind, query, min(at_most or MAX_LISTED, MAX_LISTED), attempts):
        items += page.items
    return Listing(items, max(page.total, len(items)))


async def _pages(
    rest: Rest, path: str, kind: type[T], query: Sequence[tuple[str, str]], at_most: int, attempts: int
) -> AsyncIterator[_Page[T]]:
    """At least one."""
    left, cursor = at_most, None
    while True:
        asked = [*query, ("limit", str(min(left, PAGE)))] + ([("cursor", cursor)] if cursor else [])

        async def ask(asked: Sequence[tuple[str, str]] = asked) -> _Page[T]:
            async with rest.request("GET", path, timeout_s=CALL_TIMEOUT_S, params=asked) as response:
                found = rest.decode(await rest.body(response), list[kind])  # type: ignore[valid-type]
                return _Page(found, _total(response), _next_cursor(response))

        page = await retried(ask, attempts)
        yield page
        left, cursor = left - len(page.items), page.cursor
        if left <= 0 or cursor is None or not page.items:
            return


def _total(response: aiohttp.ClientResponse) -> int:
    """0 if the controller does not say."""
    text = response.headers.get(TOTAL_HEADER, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0


def _next_cursor(response: aiohttp.ClientResponse) -> str | None:
    """Of the link only what is ours to repeat: it must not lead a token to another host."""
    link = response.links.get("next")
    cursor = parse_qs(urlsplit(str(link["url"])).query).get("cursor", [""])[0] if link else ""
    return cursor if 0 < len(cursor) <= _MAX_CURSOR else None
