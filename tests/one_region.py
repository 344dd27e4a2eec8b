"""A real controller on real sockets, over fakes of the store; tests put several of them into one memory mesh."""

from __future__ import annotations

import hashlib
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dht.peer_http import PEER, PeerHttp
from dht.records.memory_directory import MemoryDirectory, MemoryMesh
from dht.swarm.memory_content import MemoryContent, Swarm
from protocol.identifiers import node_id
from protocol.peers import PeerIdentity, Role
from protocol.problems import InvalidArchive, Problem, Unavailable
from protocol.records import ServiceRecord, raw_public_key, sign
from protocol.service import ServiceDescriptor
from region_controller import Controller, ControllerConfig, client_routes, peer_routes, running_controller
from region_controller.api import Handler

OPERATOR = "operator-token"
PUBLISHER = Ed25519PrivateKey.from_private_bytes(b"p" * 32)


def key_of(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def node_of(name: str) -> str:
    return node_id(raw_public_key(key_of(name)))


def a_service(
    service_id: str = "svc",
    *,
    name: str = "service",
    digest: str = "",
    category: str = "/text",
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    mem: int = 100,
    seq: int = 0,
    publisher: Ed25519PrivateKey = PUBLISHER,
) -> ServiceRecord:
    """A record, valid now. `digest`: any text, hashed."""
    return ServiceRecord(
        digest="sha256:" + hashlib.sha256((digest or service_id + name).encode()).hexdigest(),
        id=service_id,
        name=name,
        description="",
        category=category,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        size=1,
        mem=mem,
        publisher=raw_public_key(publisher),
        version="1",
        seq=seq or int(time.time() * 1000),
        expiry=int(time.time()) + 3600,
    )


class CuttableHttp(PeerHttp):
    """While `cut` says so, nobody can be reached."""

    def __init__(self, session: aiohttp.ClientSession, cut: Callable[[], bool]) -> None:
        super().__init__(session, None)
        self._cut = cut

    def over(self, session: aiohttp.ClientSession) -> PeerHttp:
        return CuttableHttp(session, self._cut)

    @asynccontextmanager
    async def request(
        self, method: str, address: str, path: str, **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._cut():
            raise Unavailable(f"node {address} cannot be reached: the line is cut")
        async with super().request(method, address, path, **options) as response:
            yield response


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """As `node.web` has it, as far as these tests need it."""
    try:
        return await handler(request)
    except Problem as problem:
        body = msgspec.json.encode(problem.to_dict())
        headers = {"Retry-After": str(problem.retry_after)} if problem.retry_after else {}
        return web.Response(status=problem.status, body=body, headers=headers, content_type="application/problem+json")


@dataclass
class Site:
    """`rest` and `peer`: URLs. `phone`: a session whose base is `rest`."""

    controller: Controller
    directory: MemoryDirectory
    content: MemoryContent
    rest: str
    peer: str
    phone: aiohttp.ClientSession

    async def publish(self, record: ServiceRecord, key: Ed25519PrivateKey = PUBLISHER) -> ServiceRecord:
        await self.directory.publish(sign(record, key))
        return record


async def describe(path: Path) -> ServiceDescriptor:
    """Archives of these tests are a zip with one descriptor in JSON."""
    try:
        with zipfile.ZipFile(path) as archive:
            return msgspec.json.decode(archive.read("descriptor.json"), type=ServiceDescriptor)
    except zipfile.BadZipFile:
        raise InvalidArchive("not a zip", code="not-a-zip") from None


def an_archive(folder: Path, descriptor: ServiceDescriptor) -> bytes:
    path = folder / "made.csar"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("descriptor.json"), msgspec.json.encode(descriptor))
    return path.read_bytes()


@asynccontextmanager
async def running_site(
    folder: Path,
    region: str = "eu/de",
    *,
    mesh: MemoryMesh | None = None,
    swarm: Swarm | None = None,
    name: str = "",
    cut: Callable[[], bool] = bool,
    **settings: Any,
) -> AsyncIterator[Site]:
    """A controller of `region` with its two listeners; node-to-node callers say who they are in `Test-Peer`.

    `cut`: whether it is cut off from the others now. `settings` go into its configuration."""
    name = name or region
    me = PeerIdentity(node_of(name), "demo", region, ("controller", "store"))
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            aiohttp.ClientSession(headers={"Test-Peer": f"{me.node} demo {region} controller"})
        )
        routes: list[web.RouteDef] = []
        peer_app = web.Application(middlewares=[problems, _test_peer])
        directory = MemoryDirectory(mesh or MemoryMesh(), key_of(name))
        content = MemoryContent(swarm or Swarm())
        controller = await stack.enter_async_context(
            running_controller(
                ControllerConfig(
                    region=region,
                    database=folder / name.replace("/", "-") / "controller.sqlite",
                    spool=folder / name.replace("/", "-") / "spool",
                    **{"max_archive_bytes": 100_000, **settings},
                ),
                identity=me,
                directory=directory,
                content=content,
                http=CuttableHttp(session, cut),
                describe=describe,
                publisher_key=key_of("site"),
                operator_token=OPERATOR,
            )
        )
        routes = peer_routes(controller)
        peer_app.add_routes(routes)
        rest_app = web.Application(middlewares=[problems])
        rest_app.add_routes(client_routes(controller))
        peer = TestServer(peer_app, host="127.0.0.1")
        rest = TestServer(rest_app, host="127.0.0.1")
        for server in (peer, rest):
            await server.start_server(auto_decompress=False)  # as `node.web` has it
            stack.push_async_callback(server.close)
        stack.push_async_callback(controller.close_links)
        directory._addresses = (f"127.0.0.1:{peer.port}",)
        await directory.announce_region(region=region, agents=0, memory_total=0, memory_free=0)
        phone = await stack.enter_async_context(aiohttp.ClientSession(f"http://127.0.0.1:{rest.port}"))
        yield Site(
            controller, directory, content, f"http://127.0.0.1:{rest.port}", f"http://127.0.0.1:{peer.port}", phone
        )


@web.middleware
async def _test_peer(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What the TLS listener reads from the certificate."""
    if said := request.headers.get("Test-Peer"):
        node, mesh, region, *roles = said.split()
        known: tuple[Role, ...] = tuple(r for r in ("controller", "agent", "store") if r in roles)
        request[PEER] = PeerIdentity(node, mesh, region, known)
    return await handler(request)
