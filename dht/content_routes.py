"""HTTP to peers: manifests, which chunks are here, chunks. Errors are Problems for the node's middleware to write.

A middleware must set `request[dht.peer_http.PEER]` before these handlers run.
"""

from __future__ import annotations

import asyncio

import structlog
from aiohttp import web

from dht.content_wire import CHUNK_HEADER, ELSEWHERE, MAX_REQUEST, WHOLE_HEADER, decode_asked, encode_have
from dht.crowd import Crowd
from dht.crowd_routes import crowd_routes
from dht.exchange import Exchange
from dht.peer_http import PEER
from dht.traffic import Cause
from protocol.identifiers import check_digest
from protocol.problems import ContentNotFound, NotFound, TooLarge

log = structlog.get_logger(__name__)

_PIECE = 256 << 10
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
        crowd = self._crowd(request.query.get("crowd", ""))
        asker = request[PEER].node
        with self._exchange.uploads.slot():
            response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
            await response.prepare(request)
            for digest in asked:
                if crowd is not None:
                    if not crowd.gives(asker, digest, self._exchange.clock()):
                        if not await self._write(request, response, CHUNK_HEADER.pack(ELSEWHERE), "chunk"):
                            return response
                        continue
                    crowd.gave(asker, digest, self._exchange.clock())
                data = await self._exchange.read_chunk(digest) or b""
                if not await self._write(request, response, CHUNK_HEADER.pack(len(data)) + data, "chunk"):
                    return response
            await response.write_eof()
            return response

    def _crowd(self, blob: str) -> Crowd | None:
        """The crowd that may be sent elsewhere."""
        return self._exchange.crowds.known(blob) if self._exchange.super_seeds(blob) else None

    async def _send(self, request: web.Request, body: bytes, cause: Cause, **headers: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream", **headers})
        response.content_length = len(body)
        await response.prepare(request)
        if await self._write(request, response, body, cause):
            await response.write_eof()
        return response

    async def _write(self, request: web.Request, response: web.StreamResponse, data: bytes, cause: Cause) -> bool:
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
                if request.transport is not None:
                    request.transport.abort()
                return False
            except ConnectionError:
                return False
            self._exchange.sent.add(peer.node, cause, len(piece))
        return True
