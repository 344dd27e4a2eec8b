"""What a node asks other nodes about content. Every answer is bounded; a peer's own problems never look like ours."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from dht.content_wire import CHUNK_HEADER, ELSEWHERE, WHOLE_HEADER, encode_asked
from dht.crowd_wire import MAX_HEARD, Heard, decode_heard
from dht.peer_http import PeerHttp
from protocol.bounded import read_bounded
from protocol.manifest import MAX_MANIFEST, Chunk, Manifest
from protocol.problems import CorruptContent, NotFound, Problem, TooLarge, TooManyRequests, Unavailable

_ASK_S = 10.0
_IDLE_S = 5.0
_CHUNKS_S = 600.0

OnChunk = Callable[[int, bytes | None], Awaitable[None]]
"""Hears the index in the list asked for, and the chunk's unverified bytes, or None if the peer lacks it."""


class ContentClient:
    """All methods raise Unavailable, TooManyRequests (busy), NotFound, or CorruptContent (a malformed answer)."""

    def __init__(self, http: PeerHttp) -> None:
        self._http = http

    async def manifest(self, address: str, digest: str) -> tuple[Manifest, bool]:
        """The manifest, and whether the peer has the whole blob."""
        async with self._answer("GET", address, f"/peer/content/{digest}/manifest") as response:
            body = await _bounded(response, MAX_MANIFEST)
            return Manifest.decode(body, digest=digest), response.headers.get(WHOLE_HEADER) == "1"

    async def meet(self, address: str, manifest: Manifest, told: bytes) -> Heard:
        """Tell a peer what is here (`crowd_wire.encode_told`), hear what it holds and who else fetches."""
        async with self._answer("POST", address, f"/peer/content/{manifest.digest}/have", data=told) as response:
            return decode_heard(await _bounded(response, MAX_HEARD), manifest)

    async def chunks(
        self,
        address: str,
        wanted: Sequence[Chunk],
        *,
        crowd: str,
        on_bytes: Callable[[int], None],
        on_chunk: OnChunk,
        on_elsewhere: Callable[[int], None],
    ) -> None:
        """Streams chunks in the order asked; `on_bytes` hears the sizes of parts. Errors of `on_chunk` pass through.

        `crowd`: the blob they are wanted for, if the peer may send this node elsewhere (then `on_elsewhere` hears the
        index in the list); empty: it is to send them.
        """
        body = encode_asked(c.digest for c in wanted)
        path = f"/peer/chunks?crowd={crowd}" if crowd else "/peer/chunks"
        async with self._answer("POST", address, path, timeout_s=_CHUNKS_S, data=body) as response:
            for index, chunk in enumerate(wanted):
                (length,) = CHUNK_HEADER.unpack(await _exactly(response, CHUNK_HEADER.size, on_bytes))
                if length == ELSEWHERE and crowd:
                    on_elsewhere(index)
                    continue
                if length not in (0, chunk.length):
                    raise CorruptContent(f"a chunk of {length} bytes where {chunk.length} were asked for")
                await on_chunk(index, await _exactly(response, length, on_bytes) if length else None)

    @asynccontextmanager
    async def _answer(
        self, method: str, address: str, path: str, *, timeout_s: float = _ASK_S, **kwargs: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        answered = False
        try:
            async with self._http.request(
                method, address, path, timeout_s=timeout_s, idle_s=_IDLE_S, **kwargs
            ) as response:
                answered = True
                yield response
        except (TooManyRequests, NotFound, Unavailable):
            raise
        except Problem as problem:
            if answered:
                raise
            raise Unavailable(f"node {address} answered: {problem.detail}") from problem


async def _bounded(response: aiohttp.ClientResponse, limit: int) -> bytes:
    try:
        return await read_bounded(response.content.iter_any(), limit, "the answer")
    except TooLarge as problem:
        raise CorruptContent(problem.detail) from problem


async def _exactly(response: aiohttp.ClientResponse, size: int, on_bytes: Callable[[int], None]) -> bytes:
    """Like `readexactly`, but a slow peer is heard before the last byte has come."""
    parts: list[bytes] = []
    while size:
        part = await response.content.read(size)
        if not part:
            raise Unavailable("the peer broke off its answer")
        on_bytes(len(part))
        size -= len(part)
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
