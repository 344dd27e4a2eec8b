"""HTTP to peers: what this node holds at a key, whole (see `dht.records.set_wire`).

A middleware must set `request[dht.peer_http.PEER]` before the handler runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from aiohttp import web

from dht import ordering
from dht.peer_http import PEER
from dht.records.set_wire import encoded, encoded_size, position_in
from protocol.identifiers import KEY_BYTES
from protocol.problems import BadRequest, TooManyRequests

log = structlog.get_logger(__name__)

SETS_AT_ONCE = 16
BLOCK = 512
"""Records written at once: some 160 KB."""
STALL_S = 5.0
"""A peer that takes nothing for this long is cut off."""


def set_routes(held: Callable[[bytes], ordering.OrderedSet]) -> list[web.RouteDef]:
    """`held`: the set at a key, as it is paged over UDP."""
    return [web.get("/peer/records/{key}", _SetRoutes(held).get_set)]


class _SetRoutes:
    def __init__(self, held: Callable[[bytes], ordering.OrderedSet]) -> None:
        self._held = held
        self._under_way = 0

    async def get_set(self, request: web.Request) -> web.StreamResponse:
        key, after = _key(request.match_info["key"]), position_in(request.query.get("after", ""))
        if self._under_way >= SETS_AT_ONCE:
            raise TooManyRequests("this node sends as many sets as it can", retry_after=1.0)
        self._under_way += 1
        try:
            return await _sent(request, self._held(key).after(after))
        finally:
            self._under_way -= 1


async def _sent(request: web.Request, envelopes: list[bytes]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
    response.content_length = encoded_size(envelopes)
    await response.prepare(request)
    try:
        for first in range(0, len(envelopes), BLOCK):
            async with asyncio.timeout(STALL_S):
                await response.write(encoded(envelopes[first : first + BLOCK]))
        await response.write_eof()
    except TimeoutError:
        log.warning("set-reader-stalled", peer=request[PEER].node)
        if request.transport is not None:
            request.transport.abort()
    except ConnectionError:
        log.debug("set-reader-gone", peer=request[PEER].node)
    return response


def _key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise BadRequest(f"{text[:50]!r} is no key: {2 * KEY_BYTES} hex digits")
    return key
