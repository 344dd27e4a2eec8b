"""Reads whole sets from other nodes over HTTP. What a peer does wrong ends its turn; it never raises."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from dht.peer_http import PeerHttp
from dht.records.set_wire import SetDecoder, path_of
from protocol.problems import Problem

log = structlog.get_logger(__name__)

IDLE_S = 3.0
GRACE_S = 2.0
SLOWEST = 64 << 10
"""Bytes a second; who sends less in the time after GRACE_S is left for another."""
LONGEST_S = 60.0
PIECE = 32 << 10
"""Bytes that are looked at in one go: about 100 records, well under a millisecond."""


class SetClient:
    """See `dht.overlay.set_reading.WholeSets`."""

    def __init__(self, http: PeerHttp) -> None:
        self._http = http

    async def read(self, address: str, key: bytes, after: bytes, take: Callable[[list[bytes], bytes], None]) -> bool:
        decoder = SetDecoder(after)
        loop = asyncio.get_running_loop()
        came, counted_from = 0, loop.time() + GRACE_S
        try:
            async with self._http.request(
                "GET", address, path_of(key, after), timeout_s=LONGEST_S, idle_s=IDLE_S
            ) as response:
                async for piece in response.content.iter_chunked(PIECE):
                    take(decoder.feed(piece), decoder.position)
                    came += len(piece)
                    if came < (loop.time() - counted_from) * SLOWEST:
                        log.info("set-holder-too-slow", address=address)
                        return False
                    await asyncio.sleep(0)
        except Problem as problem:
            log.info("set-not-read", address=address, problem=problem.detail)
            return False
        return decoder.is_between
