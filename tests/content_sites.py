"""Sites that exchange content over real HTTP on loopback, with a directory that all of them share."""

from __future__ import annotations

import os
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dht.content_routes import content_routes
from dht.exchange import ContentConfig, Exchange, running_content
from dht.peer_http import PEER, PeerHttp
from protocol.identifiers import node_id
from protocol.peers import PeerIdentity
from protocol.problems import Problem, Unavailable
from protocol.records import ProviderRecord, Signed, raw_public_key, sign

Handler = Callable[[web.Request], Any]


@dataclass
class Whereabouts:
    """Who offers what: the state that the directories of all sites share."""

    providers: dict[str, dict[str, str]] = field(default_factory=dict)
    slow: bool = False
    closed: bool = False
    """Nothing that is announced from now on is found by anybody."""

    def offer(self, digest: str, node: str, address: str) -> None:
        if self.closed:
            return
        self.providers.setdefault(digest, {})[node] = address


class SiteDirectory:
    """The part of `dht.contracts.Directory` that content needs."""

    def __init__(self, shared: Whereabouts, number: int, address: str) -> None:
        self._shared = shared
        self._key = site_key(number)
        self._node = node_name(number)
        self._address = address

    async def providers(self, digest: str) -> list[ProviderRecord]:
        if self._shared.slow:
            raise Unavailable("peers were slow")
        known = self._shared.providers.get(digest, {})
        return [ProviderRecord(digest, n, (a,), 0, 2**40) for n, a in known.items() if n != self._node]

    async def announce_content(self, digest: str) -> None:
        self._shared.offer(digest, self._node, self._address)

    async def retract_content(self, digest: str) -> None:
        self._shared.providers.get(digest, {}).pop(self._node, None)

    def offer(self, digest: str) -> Signed:
        now = time.time()
        record = ProviderRecord(digest, self._node, (self._address,), int(now * 1000), int(now) + 600)
        return sign(record, self._key)


def site_key(number: int) -> Ed25519PrivateKey:
    """The same for the same number."""
    return Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "big"))


def node_name(number: int) -> str:
    return node_id(raw_public_key(site_key(number)))


@web.middleware
async def problems_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    request[PEER] = PeerIdentity(request.headers.get("Test-Node", node_name(0)), "test", "eu", ("store",))
    try:
        return await handler(request)
    except Problem as problem:
        return web.json_response(problem.to_dict(), status=problem.status, content_type="application/problem+json")


@asynccontextmanager
async def served(routes: list[web.RouteDef], *middlewares: Any, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """Routes on a loopback port; yields host:port."""
    app = web.Application(middlewares=[*middlewares, problems_as_json])
    app.add_routes(routes)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    host, _, port = address.rpartition(":")
    site = web.TCPSite(runner, host, int(port))
    try:
        await site.start()
        yield f"{host}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@dataclass
class Site:
    exchange: Exchange
    node: str
    address: str
    listener: AsyncExitStack
    routes: list[web.RouteDef]

    async def die(self) -> None:
        """The listener is gone in the midst of what it does, as if the process had been killed."""
        await self.listener.aclose()

    async def come_back(self) -> None:
        """At the address it had."""
        await self.listener.enter_async_context(served(self.routes, address=self.address))


@asynccontextmanager
async def site(shared: Whereabouts, path: Path, number: int, *middlewares: Any, **config: Any) -> AsyncIterator[Site]:
    node = node_name(number)
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession(headers={"Test-Node": node}))
        late: list[Exchange] = []
        routes = _routes_of(late)
        listener = AsyncExitStack()
        await stack.enter_async_context(listener)
        address = await listener.enter_async_context(served(routes, *middlewares))
        exchange = await stack.enter_async_context(
            running_content(
                ContentConfig(path=path / f"blobs{number}", **config),
                directory=SiteDirectory(shared, number, address),  # type: ignore[arg-type]
                http=PeerHttp(session, None),
            )
        )
        late.append(exchange)
        yield Site(exchange, node, address, listener, routes)


def _routes_of(late: list[Exchange]) -> list[web.RouteDef]:
    """Routes need the exchange, the exchange's directory needs the address: bind at the first request."""

    def bound(index: int) -> Handler:
        async def handler(request: web.Request) -> web.StreamResponse:
            route = content_routes(late[0])[index]
            return await route.handler(request)  # type: ignore[misc, arg-type, no-any-return]

        return handler

    return [
        web.get("/peer/content/{digest}/manifest", bound(0)),
        web.get("/peer/content/{digest}/have", bound(1)),
        web.get("/peer/chunks/{digest}", bound(2)),
        web.post("/peer/chunks", bound(3)),
        web.post("/peer/content/{digest}/have", bound(4)),
    ]


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def damage(blobs: Path, part: bytes, by: bytes = b"rot") -> None:
    """Some bytes of a chunk that is kept there are others now. Who looks at the time of change can see it."""
    for pack in (blobs / "packs").iterdir():
        before, offset = pack.stat(), pack.read_bytes().find(part)
        if offset >= 0:
            with pack.open("r+b") as file:
                file.seek(offset)
                file.write(by)
            os.utime(pack, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
            return
    raise AssertionError("the chunk is not there")


def files_of(blobs: Path) -> list[Path]:
    """All files of content, whole or not."""
    return sorted([*(blobs / "packs").iterdir(), *(blobs / "work").iterdir()])


def a_file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
