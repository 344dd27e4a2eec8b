"""HTTP to peers: manifests, and which chunks are here. Errors are Problems for the node's middleware to write.

A middleware must set `request[dht.peer_http.PEER]` before these handlers run. Chunks: `dht.swarm.content_server`.
"""

from __future__ import annotations

import asyncio

import structlog
from aiohttp import web

from dht.peer_http import PEER
from dht.swarm.content_wire import WHOLE_HEADER, encode_have
from dht.swarm.crowd_routes import crowd_routes
from dht.swarm.exchange import Exchange
from protocol.identifiers import check_digest
from protocol.problems import ContentNotFound

log = structlog.get_logger(__name__)

_PIECE = 256 << 10
_STALL_S = 30.0
"""A peer that takes nothing for this long is cut off."""


def content_routes(exchange: Exchange) -> list[web.RouteDef]:
    routes = _ContentRoutes(exchange)
    return [
        web.get("/peer/content/{digest}/manifest", routes.get_manifest),
        web.get("/peer/content/{digest}/have", routes.get_have),
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
        body = manifest.encode()
        whole = "1" if self._exchange.has(digest) else "0"
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream", WHOLE_HEADER: whole})
        response.content_length = len(body)
        await response.prepare(request)
        if await self._write(request, response, memoryview(body)):
            await response.write_eof()
        return response

    async def get_have(self, request: web.Request) -> web.StreamResponse:
        digest = check_digest(request.match_info["digest"])
        manifest = await self._exchange.manifest(digest)
        if manifest is None:
            raise ContentNotFound(f"this node knows no manifest of {digest}")
        present = await self._exchange.present(manifest)
        return web.Response(body=encode_have(manifest, present), content_type="application/msgpack")

    async def _write(self, request: web.Request, response: web.StreamResponse, view: memoryview) -> bool:
        """False if the peer has gone, or was sent away because it takes nothing."""
        peer = request[PEER]
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
            self._exchange.sent.add(peer.node, "manifest", len(piece))
        return True
