"""What a node asks other nodes about content. Every answer is bounded; a peer's own problems never look like ours."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from dht.peer_http import PeerHttp
from dht.swarm.content_wire import CHUNK_HEADER, ELSEWHERE, WHOLE_HEADER, encode_asked
from dht.swarm.crowd_wire import MAX_HEARD, Heard, decode_heard
from dht.swarm.peer_streams import PeerStreams, Stream
from protocol.bounded import read_bounded
from protocol.manifest import MAX_MANIFEST, Chunk, Manifest
from protocol.problems import CorruptContent, DiskUnusable, NotFound, Problem, TooLarge, TooManyRequests, Unavailable

_ASK_S = 10.0
_IDLE_S = 5.0
_KEPT_BUFFER = 1 << 20
"""Bytes that a thread keeps between answers, at most: as much as the largest chunk that is cut here."""

OnChunk = Callable[[int, memoryview | None], None]
"""Hears, in a thread, the index in the list asked for and the chunk's unverified bytes, or None if the peer lacks it.

The bytes are valid until it returns.
"""


class ContentClient:
    """All methods raise Unavailable, TooManyRequests (busy), NotFound, or CorruptContent (a malformed answer)."""

    def __init__(self, http: PeerHttp, streams: PeerStreams) -> None:
        self._http = http
        self._streams = streams
        self._own = threading.local()

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
        crowd: str | None,
        on_chunk: OnChunk,
        on_elsewhere: Callable[[int], None],
        stream: Stream,
    ) -> None:
        """Reads chunks in the order asked, in a thread, through `stream`. Errors of `on_chunk` pass through.

        `crowd`: the blob they are wanted for, if the peer may send this node elsewhere (then `on_elsewhere` hears the
        index in the list, in the thread); None: it is to send them.
        """
        header = memoryview(bytearray(CHUNK_HEADER.size))

        def read(stream: Stream) -> None:
            buffer = self._buffer(max(c.length for c in wanted))
            for index, chunk in enumerate(wanted):
                stream.read_into(header)
                (length,) = CHUNK_HEADER.unpack(header)
                if length == ELSEWHERE and crowd is not None:
                    on_elsewhere(index)
                    continue
                if length not in (0, chunk.length):
                    raise CorruptContent(f"a chunk of {length} bytes where {chunk.length} were asked for")
                view = buffer[:length]
                stream.read_into(view)
                on_chunk(index, view if length else None)

        request = encode_asked((c.digest for c in wanted), crowd)
        try:
            await self._streams.ask(address, request, read, idle_s=_IDLE_S, stream=stream)
        except (TooManyRequests, NotFound, Unavailable, CorruptContent, DiskUnusable):
            raise
        except Problem as problem:
            raise Unavailable(f"node {address} answered: {problem.detail}") from problem

    def _buffer(self, size: int) -> memoryview:
        """Of the thread that reads; the one before unless it is too small. To take and clear new memory for each answer
        keeps Python locked, and the processor's cache cold."""
        kept: memoryview | None = getattr(self._own, "buffer", None)
        if kept is None or len(kept) < size:
            kept = memoryview(bytearray(size))
            if size <= _KEPT_BUFFER:
                self._own.buffer = kept
        return kept

    @asynccontextmanager
    async def _answer(
        self, method: str, address: str, path: str, **kwargs: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        answered = False
        try:
            async with self._http.request(
                method, address, path, timeout_s=_ASK_S, idle_s=_IDLE_S, **kwargs
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
