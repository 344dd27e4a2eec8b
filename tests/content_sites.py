"""Sites that exchange content over real HTTP on loopback, with a directory that all of them share."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dht.peer_http import PEER, PeerHttp
from dht.swarm.content_routes import content_routes
from dht.swarm.content_server import serving_content
from dht.swarm.content_wire import LENGTH, Asked, decode_asked
from dht.swarm.exchange import ContentConfig, Exchange, running_content
from node.web import bind, serving
from protocol.identifiers import node_id
from protocol.peers import PeerIdentity
from protocol.problems import Unavailable
from protocol.records import ProviderRecord, Signed, raw_public_key, sign

Handler = Callable[[web.Request], Any]
Take = Callable[[socket.socket], None]


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


def source(number: int) -> str:
    """The loopback address that a site asks for content from: without TLS, that is who it is."""
    return f"127.0.0.{number + 1}"


def peer_at(sock: socket.socket) -> PeerIdentity:
    """What a certificate says in a mesh."""
    number = int(sock.getpeername()[0].rpartition(".")[2]) - 1
    return PeerIdentity(node_name(number), "test", "eu", ("store",))


@web.middleware
async def named_by_header(request: web.Request, handler: Handler) -> web.StreamResponse:
    request[PEER] = PeerIdentity(request.headers.get("Test-Node", node_name(0)), "test", "eu", ("store",))
    response: web.StreamResponse = await handler(request)
    return response


@asynccontextmanager
async def served(
    routes: list[web.RouteDef], *middlewares: Any, address: str = "127.0.0.1:0", take_content: Take | None = None
) -> AsyncIterator[str]:
    """Routes, and perhaps content, on a loopback port; yields host:port."""
    host, _, port = address.rpartition(":")
    sock = bind(host, int(port), 0)
    address = f"{host}:{sock.getsockname()[1]}"
    wrapped = [*middlewares, named_by_header]
    async with serving(sock, routes, middlewares=wrapped, take_content=take_content, drain_s=0.1):
        yield address


class Answering:
    """A peer without TLS that answers one request for chunks with what `answer` makes of it, and hangs up."""

    def __init__(self, answer: Callable[[Asked], bytes]) -> None:
        self._answer = answer

    def take(self, sock: socket.socket) -> None:
        sock.settimeout(10)
        threading.Thread(target=self._serve, args=(sock,)).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError), sock.makefile("rb") as requests:
            if head := requests.read(LENGTH.size):
                sock.sendall(self._answer(decode_asked(requests.read(LENGTH.unpack(head)[0]))))


@dataclass
class Site:
    exchange: Exchange
    node: str
    address: str
    listener: AsyncExitStack
    middlewares: tuple[Any, ...]

    async def die(self) -> None:
        """The listener is gone in the midst of what it does, as if the process had been killed."""
        await self.listener.aclose()

    async def come_back(self) -> None:
        """At the address it had."""
        server = await self.listener.enter_async_context(serving_content(self.exchange, peer_at, tls=None, drain_s=0.1))
        await self.listener.enter_async_context(
            served(content_routes(self.exchange), *self.middlewares, address=self.address, take_content=server.take)
        )


@asynccontextmanager
async def site(
    shared: Whereabouts,
    path: Path,
    number: int,
    *middlewares: Any,
    near: Callable[[str], bool] = lambda _: False,
    **config: Any,
) -> AsyncIterator[Site]:
    node = node_name(number)
    with bind("127.0.0.1", 0, 0) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession(headers={"Test-Node": node}))
        exchange = await stack.enter_async_context(
            running_content(
                ContentConfig(path=path / f"blobs{number}", **config),
                directory=SiteDirectory(shared, number, address),  # type: ignore[arg-type]
                http=PeerHttp(session, None, source=source(number)),
                near=near,
            )
        )
        listener = await stack.enter_async_context(AsyncExitStack())
        here = Site(exchange, node, address, listener, middlewares)
        await here.come_back()
        yield here


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
    return sorted([*(blobs / "packs").iterdir(), *(blobs / "scratch").iterdir()])


def a_file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
