"""`POST /peer/content/{digest}/have`: a node that fetches tells what it has, and hears of holders and others."""

from __future__ import annotations

import time

from aiohttp import web

from dht.peer_http import PEER, read_in_time
from dht.swarm.crowd import Member
from dht.swarm.crowd_wire import MAX_TOLD, decode_told, encode_heard
from dht.swarm.exchange import Exchange
from dht.swarm.offers import offer_of
from protocol.identifiers import check_digest
from protocol.problems import BadRequest, ContentNotFound, TooLarge

BODY_S = 10.0


def crowd_routes(exchange: Exchange) -> list[web.RouteDef]:
    async def meet(request: web.Request) -> web.Response:
        digest = check_digest(request.match_info["digest"])
        manifest = await exchange.manifest(digest)
        if manifest is None:
            raise ContentNotFound(f"this node knows no manifest of {digest}")
        if request.content_length is None or request.content_length > MAX_TOLD:
            raise TooLarge(f"what a node tells of its chunks has at most {MAX_TOLD} bytes and says its length")
        told = await read_in_time(request, MAX_TOLD, "what a node tells of its chunks", BODY_S)
        held, envelope = decode_told(told, manifest)
        peer = request[PEER].node
        if envelope and offer_of(envelope, digest, time.time()).node != peer:
            raise BadRequest("the offer is another node's")
        now = exchange.clock()
        crowd = exchange.crowds.of(manifest, now)
        crowd.told(Member(peer, envelope, frozenset(held), now))
        present = await exchange.present(manifest)
        elsewhere = (
            crowd.given([c.digest for c in manifest.chunks], peer, now)
            if exchange.super_seeds(digest)
            else [False] * len(present)
        )
        body = encode_heard(manifest, present, elsewhere, crowd.others(peer, now))
        return web.Response(body=body, content_type="application/msgpack")

    return [web.post("/peer/content/{digest}/have", meet)]
