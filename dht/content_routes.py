"""HTTP to peers: manifests, which chunks are here, chunks. Errors are Problems for the node's middleware to write.

A middleware must set `request[dht.peer_http.PEER]` before these handlers run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing

import structlog
from aiohttp import web

from dht.content_wire import ELSEWHERE, MAX_REQUEST, WHOLE_HEADER, decode_asked, encode_have, framed_size
from dht.crowd import Crowd
from dht.crowd_routes import crowd_routes
from dht.exchange import Exchange
from dht.peer_http import PEER
from dht.traffic import Cause
from protocol.identifiers import check_digest
from protocol.problems import ContentNotFound, NotFound, TooLarge

log = structlog.get_logger(__name__)

_PIECE = 256 << 10
_BLOCK = 1 << 20
"""Bytes that are read from disk at once; each answer holds two."""
_STALL_S = 30.0
"""A peer that takes nothing for this long loses its upload slot."""


def content_routes(exchange: Exchange) -> list[web.RouteDef]:
    routes = _ContentRoutes(exchange)
    return [
        web.get("/peer/content/{digest}/manifest", routes.get_manifest),
        web.get("/peer/content/{digest}/have", routes.get_have),
        web.get("/peer/chunks/{digest}", routes.get_chunk),
        web.post("/peer/chunks", routes.post_chunks),
        *crowd_routes(exchange),
    ]


class _ContentRoutes:
    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def get_manifest(self, request: web.Request) -> web.StreamResponse:
        digest = check_digest(request.match_info["digest"])
        manifest = await self._exchange.manifest(digest)
        if manifest is None:
            raise ContentNotFound(f"this node knows no manifest of {digest}")
        whole = "1" if self._exchange.has(digest) else "0"
        return await self._send(request, manifest.encode(), "manifest", **{WHOLE_HEADER: whole})

    async def get_have(self, request: web.Request) -> web.StreamResponse:
        digest = check_digest(request.match_info["digest"])
        manifest = await self._exchange.manifest(digest)
        if manifest is None:
            raise ContentNotFound(f"this node knows no manifest of {digest}")
        present = await self._exchange.present(manifest)
        return web.Response(body=encode_have(manifest, present), content_type="application/msgpack")

    async def get_chunk(self, request: web.Request) -> web.StreamResponse:
        digest = check_digest(request.match_info["digest"])
        with self._exchange.uploads.slot():
            data = await self._exchange.read_chunk(digest)
            if data is None:
                raise NotFound(f"chunk {digest} is not here")
            return await self._send(request, data, "chunk")

    async def post_chunks(self, request: web.Request) -> web.StreamResponse:
        if request.content_length is None or request.content_length > MAX_REQUEST:
            raise TooLarge(f"a list of chunks has at most {MAX_REQUEST} bytes and says its length")
        asked = decode_asked(await request.read())
        asker = request[PEER].node
        crowd = await self._crowd(request.query.get("crowd", ""), asker)
        with self._exchange.uploads.slot():
            lengths = await self._exchange.sizes(asked)
            if crowd is not None:
                lengths = [self._given(crowd, asker, d, n) for d, n in zip(asked, lengths, strict=True)]
            response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
            response.content_length = sum(framed_size(length) for length in lengths)
            await response.prepare(request)
            async with aclosing(self._blocks(list(zip(asked, lengths, strict=True)))) as blocks:
                async for block in blocks:
                    if block is None:  # promised, and gone or damaged since: the asker must not take it for an end
                        _cut_off(request)
                        return response
                    if not await self._write(request, response, block, "chunk"):
                        return response
            await response.write_eof()
            return response

    async def _crowd(self, blob: str, asker: str) -> Crowd | None:
        """The crowd that may be sent elsewhere, to which whoever asks for its sake belongs."""
        if not self._exchange.super_seeds(blob):
            return None
        now = self._exchange.clock()
        crowd = self._exchange.crowds.known(blob)
        if crowd is None:
            manifest = await self._exchange.manifest(blob)
            if manifest is None:
                return None
            crowd = self._exchange.crowds.of(manifest, now)
        crowd.asked(asker, now)
        return crowd

    def _given(self, crowd: Crowd, asker: str, digest: str, length: int) -> int:
        """What the asker is told instead of the chunk's length, if others of the crowd are to pass it on."""
        now = self._exchange.clock()
        if not crowd.gives(asker, digest, now):
            return ELSEWHERE
        crowd.gave(asker, digest, now)
        return length

    async def _blocks(self, wanted: Sequence[tuple[str, int]]) -> AsyncGenerator[bytearray | None, None]:
        """Framed chunks in blocks; the next block is read while one is sent."""
        groups = list(_grouped(wanted))
        reading: asyncio.Task[bytearray | None] | None = None
        try:
            for number in range(len(groups)):
                block = await (reading or self._exchange.read_chunks(groups[number]))
                reading = None
                if number + 1 < len(groups):
                    reading = asyncio.create_task(self._exchange.read_chunks(groups[number + 1]), name="read chunks")
                yield block
        finally:
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    async def _send(
        self, request: web.Request, body: bytes | bytearray, cause: Cause, **headers: str
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream", **headers})
        response.content_length = len(body)
        await response.prepare(request)
        if await self._write(request, response, body, cause):
            await response.write_eof()
        return response

    async def _write(
        self, request: web.Request, response: web.StreamResponse, data: bytes | bytearray, cause: Cause
    ) -> bool:
        """False if the peer has gone, or was sent away because it takes nothing: an everyday event in an end game."""
        peer = request[PEER]
        view = memoryview(data)
        while view:
            piece, view = view[:_PIECE], view[_PIECE:]
            await self._exchange.uploads.pace(len(piece))
            try:
                async with asyncio.timeout(_STALL_S):
                    await response.write(piece)
            except TimeoutError:
                log.warning("upload-stalled", peer=peer.node)
                _cut_off(request)
                return False
            except ConnectionError:
                return False
            self._exchange.sent.add(peer.node, cause, len(piece))
        return True


def _grouped(wanted: Sequence[tuple[str, int]]) -> Iterator[Sequence[tuple[str, int]]]:
    """Runs of chunks of about a block in all."""
    group: list[tuple[str, int]] = []
    for chunk in wanted:
        if group and sum(framed_size(length) for _, length in [*group, chunk]) > _BLOCK:
            yield group
            group = []
        group.append(chunk)
    yield group


def _cut_off(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
