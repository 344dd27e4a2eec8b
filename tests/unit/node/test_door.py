"""The way into a listener, on real sockets: crowds that say nothing, half a handshake, requests that are too many."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from bootstrap import Identity, client_context, peer_identity, peer_until, server_context
from bootstrap.mesh import create_mesh
from node.connections import Connections
from node.web import bind, members_only, serving
from tests.waiting import until

HALF_A_HEAD = b"GET / HTTP/1.1\r\nHost: here\r\n"
LARGE = 16 << 20
"""Bytes: more than the system takes off a server's hands."""
HALF_A_HELLO = b"\x16\x03\x01\x02\x00\x01"


class Site:
    """`/` answers, `/slow` when `gate` is open, `/large` with LARGE. `tls`: as members see it."""

    def __init__(self, connections: Connections[Any], tls: ssl.SSLContext | None) -> None:
        self.connections = connections
        self.gate = asyncio.Event()
        self.tls = tls
        self.slow = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}"

    async def answer(self, _: web.Request) -> web.Response:
        return web.Response(text="here")

    async def answer_later(self, _: web.Request) -> web.Response:
        self.slow += 1
        await self.gate.wait()
        return web.Response(text="at last")

    async def answer_at_length(self, _: web.Request) -> web.Response:
        return web.Response(body=bytes(LARGE))

    def dial(self, said: bytes = b"", source: str = "127.0.0.1") -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), source_address=(source, 0))
        sock.sendall(said)
        sock.setblocking(False)
        return sock

    async def get(self, session: aiohttp.ClientSession, path: str = "/") -> str:
        async with session.get(self.url + path, ssl=self.tls or True) as response:
            assert response.status == 200
            return await response.text()


@asynccontextmanager
async def site(*, total: int = 100, of_one_address: int, identity: Identity | None = None) -> AsyncIterator[Site]:
    connections: Connections[Any] = Connections(total=total, of_one_address=of_one_address)
    running = Site(connections, client_context(identity) if identity else None)
    sock = bind("127.0.0.1", None, 0)
    running.port = sock.getsockname()[1]
    routes = [
        web.get("/", running.answer),
        web.get("/slow", running.answer_later),
        web.get("/large", running.answer_at_length),
    ]
    async with serving(
        sock,
        routes,
        middlewares=[members_only(peer_identity, peer_until, open_paths=())] if identity else (),
        tls=server_context(identity) if identity else None,
        connections=connections,
        take_content=(lambda content: content.close()) if identity else None,
        drain_s=0.1,
    ):
        yield running


@pytest.fixture
def dialled() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


async def ended(sock: socket.socket) -> bool:
    """Without a word."""
    async with asyncio.timeout(5):
        try:
            return await asyncio.get_running_loop().sock_recv(sock, 1) == b""
        except ConnectionResetError:
            return True


async def heard(sock: socket.socket) -> str:
    """All that is said until the end."""
    said = b""
    async with asyncio.timeout(5):
        while piece := await asyncio.get_running_loop().sock_recv(sock, 1 << 16):
            said += piece
    return said.decode()


def still_open(sock: socket.socket) -> bool:
    try:
        return sock.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True


async def test_heads_that_never_end_make_room_for_who_asks(dialled: ExitStack) -> None:
    async with site(of_one_address=3) as here, aiohttp.ClientSession() as session:
        slow = [dialled.enter_context(here.dial(HALF_A_HEAD)) for _ in range(3)]
        await until(lambda: len(here.connections) == 3)
        assert await here.get(session) == "here"
        assert await ended(slow[0])
        assert all(map(still_open, slow[1:]))
        assert (here.connections.made_room, here.connections.refused) == (1, 0)
        slow[1].close()
        await until(lambda: len(here.connections) == 2)


async def test_an_idle_connection_is_closed_for_who_comes_and_made_anew_when_it_is_wanted(dialled: ExitStack) -> None:
    async with site(of_one_address=2) as here, aiohttp.ClientSession() as session:
        await here.get(session)
        for _ in range(2):
            dialled.enter_context(here.dial())
        await until(lambda: here.connections.made_room == 1)
        assert await here.get(session) == "here"


async def test_requests_beyond_the_share_of_an_address_are_refused_by_name(dialled: ExitStack) -> None:
    with capture_logs() as logs:
        async with site(of_one_address=2) as here, aiohttp.ClientSession() as session:
            working = [asyncio.create_task(here.get(session, "/slow")) for _ in range(2)]
            await until(lambda: here.slow == 2)
            for said in (b"", b"GET / HTTP/1.1\r\nHost: here\r\n\r\n" + b"x" * 9000):
                answer = await heard(dialled.enter_context(here.dial(said)))
                head, _, body = answer.partition("\r\n\r\n")
                assert head.startswith("HTTP/1.1 429 ")
                assert "Retry-After: 5" in head
                assert "too-many-requests" in body
                assert "127.0.0.1 has" in body
            async with aiohttp.ClientSession() as other, other.get(here.url) as response:
                assert (response.status, response.content_type) == (429, "application/problem+json")
            elsewhere = dialled.enter_context(here.dial(HALF_A_HEAD + b"\r\n", "127.0.0.2"))
            await until(lambda: here.connections.of("127.0.0.2") == 1)
            here.gate.set()
            assert await asyncio.gather(*working) == ["at last"] * 2
            assert still_open(elsewhere)
            assert here.connections.refused == 3
    assert [entry["address"] for entry in logs if entry["event"] == "connections-crowded"] == ["127.0.0.1"]


async def test_who_takes_an_answer_slowly_makes_no_room_before_the_end_of_it(dialled: ExitStack) -> None:
    async with site(of_one_address=1) as here:
        asked = b"GET /large HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"
        slow = dialled.enter_context(here.dial(asked))
        begun = await asyncio.get_running_loop().sock_recv(slow, 1 << 10)
        assert (await heard(dialled.enter_context(here.dial()))).startswith("HTTP/1.1 429 ")
        answer = begun.decode() + await heard(slow)
        assert len(answer.partition("\r\n\r\n")[2]) == LARGE


async def test_who_never_takes_its_answer_makes_room_in_the_end(
    dialled: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.web.TAKEN_S", 0.0)
    async with site(of_one_address=1) as here, aiohttp.ClientSession() as session:
        slow = dialled.enter_context(here.dial(b"GET /large HTTP/1.1\r\nHost: here\r\n\r\n"))
        await asyncio.get_running_loop().sock_recv(slow, 1 << 10)
        assert await here.get(session) == "here"
        assert here.connections.made_room == 1


async def test_one_address_cannot_fill_the_house(dialled: ExitStack) -> None:
    async with site(total=4, of_one_address=4) as here:
        greedy = [dialled.enter_context(here.dial()) for _ in range(4)]
        await until(lambda: len(here.connections) == 4)
        phone = dialled.enter_context(here.dial(HALF_A_HEAD + b"Connection: close\r\n\r\n", "127.0.0.2"))
        assert (await heard(phone)).endswith("here")
        assert await ended(greedy[0])


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    return create_mesh(tmp_path, mesh="home", region="eu", roles=["store"], now=time.time())


async def test_handshakes_that_never_end_make_room_and_members_stay(dialled: ExitStack, identity: Identity) -> None:
    async with site(of_one_address=4, identity=identity) as here, aiohttp.ClientSession() as member:
        assert await here.get(member) == "here"
        half = [dialled.enter_context(here.dial(said)) for said in (HALF_A_HELLO, b"", HALF_A_HELLO)]
        await until(lambda: len(here.connections) == 4)
        more = [dialled.enter_context(here.dial(HALF_A_HELLO)) for _ in range(3)]
        assert all([await ended(sock) for sock in half])
        assert all(map(still_open, more))
        made_room = here.connections.made_room
        assert await here.get(member) == "here"
        assert here.connections.made_room == made_room, "its connection is still the one from before the crowd"


async def test_where_tls_comes_first_who_is_too_many_is_hung_up_on(dialled: ExitStack, identity: Identity) -> None:
    async with site(of_one_address=1, identity=identity) as here, aiohttp.ClientSession() as member:
        working = asyncio.create_task(here.get(member, "/slow"))
        await until(lambda: here.slow == 1)
        assert await ended(dialled.enter_context(here.dial(HALF_A_HELLO)))
        here.gate.set()
        assert await working == "at last"


async def test_a_handshake_has_its_time(
    dialled: ExitStack, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.door.HELLO_S", 0.05)
    async with site(of_one_address=4, identity=identity) as here:
        for said in (b"", HALF_A_HELLO):
            assert await ended(dialled.enter_context(here.dial(said)))
        await until(lambda: len(here.connections) == 0)
