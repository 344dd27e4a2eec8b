"""Large answers of peers: kept connections, cancellation, hostile and silent peers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from bootstrap import client_context, peer_identity, server_context
from bootstrap.mesh import create_mesh
from dht.peer_http import PeerHttp
from dht.swarm.content_wire import NO_PROBLEM, encode_problem
from dht.swarm.peer_streams import PeerStreams, Stream, running_streams
from protocol.problems import CorruptContent, DiskFull, KeyNeeded, NotFound, Problem, TooManyRequests, Unavailable
from tests.content_sites import served
from tests.waiting import until

BODY = bytes(range(256)) * 2000


@asynccontextmanager
async def streams(connections: int = 4, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[PeerStreams]:
    async with (
        aiohttp.ClientSession() as session,
        running_streams(PeerHttp(session, tls), connections=connections) as running,
    ):
        yield running


def whole(stream: Stream) -> bytes:
    buffer = bytearray(len(BODY))
    stream.read_into(memoryview(buffer))
    return bytes(buffer)


class Peer:
    """Answers with BODY, or as it was told to; counts its connections."""

    def __init__(self) -> None:
        self.connections = 0
        self.answer = NO_PROBLEM + BODY
        self.hangs_up = False

    def take(self, sock: socket.socket) -> None:
        self.connections += 1
        sock.settimeout(10)
        threading.Thread(target=self._serve, args=(sock,)).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            while sock.recv(1 << 16):
                sock.sendall(self.answer)
                if self.hangs_up:
                    return


async def test_a_connection_is_kept_and_used_again_after_a_problem_too() -> None:
    peer = Peer()
    async with served([], take_content=peer.take) as address, streams() as running:
        for _ in range(3):
            assert await running.ask(address, b"?", whole, idle_s=5) == BODY
        peer.answer = encode_problem(NotFound("it is not here"))
        with pytest.raises(NotFound, match="it is not here"):
            await running.ask(address, b"?", whole, idle_s=5)
        peer.answer = NO_PROBLEM + BODY
        assert await running.ask(address, b"?", whole, idle_s=5) == BODY
    assert peer.connections == 1


async def test_the_full_disk_of_a_peer_is_not_taken_for_our_own() -> None:
    peer = Peer()
    peer.answer = encode_problem(DiskFull("the disk of /var/lib/peer is full"))
    async with served([], take_content=peer.take) as address, streams() as running:
        with pytest.raises(Unavailable, match="answered: the disk of /var/lib/peer is full"):
            await running.ask(address, b"?", whole, idle_s=5)


async def test_a_connection_that_the_peer_closed_is_made_anew() -> None:
    peer = Peer()
    peer.hangs_up = True
    async with streams() as running, served([], take_content=peer.take) as address:
        for _ in range(3):
            assert await running.ask(address, b"?", whole, idle_s=5) == BODY
    assert peer.connections == 3


async def test_what_goes_wrong_while_reading_ends_the_connection() -> None:
    peer = Peer()

    def refused(stream: Stream) -> bytes:
        stream.read_into(memoryview(bytearray(10)))
        raise CorruptContent("not what was asked for")

    async with served([], take_content=peer.take) as address, streams() as running:
        with pytest.raises(CorruptContent):
            await running.ask(address, b"?", refused, idle_s=5)
        assert await running.ask(address, b"?", whole, idle_s=5) == BODY
    assert peer.connections == 2


class TlsPeer(Peer):
    """Like Peer, with TLS; notes who asked, and whether the session went on from an earlier connection."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__()
        self.asked: list[tuple[str, bool | None]] = []
        self._context = context

    def _serve(self, sock: socket.socket) -> None:
        with self._context.wrap_socket(sock, server_side=True) as secured:
            peer = peer_identity(secured)
            assert peer is not None
            self.asked.append((peer.node, secured.session_reused))
            super()._serve(secured)


async def test_over_tls_a_second_connection_goes_on_from_the_first(tmp_path: Path) -> None:
    identity = create_mesh(tmp_path, mesh="home", region="eu", roles=["store"], now=time.time())
    peer = TlsPeer(server_context(identity))
    peer.hangs_up = True
    async with served([], take_content=peer.take) as address, streams(tls=client_context(identity)) as running:
        for _ in range(3):
            assert await running.ask(address, b"?", whole, idle_s=5) == BODY
    assert peer.asked == [(identity.node, False), (identity.node, True), (identity.node, True)]


async def test_who_is_no_member_any_more_begins_anew_with_the_certificate_that_it_has_now(tmp_path: Path) -> None:
    """The peer knows a session by the certificate with which it began, which may have ended since."""
    identity = create_mesh(tmp_path, mesh="home", region="eu", roles=["store"], now=time.time())
    peer = TlsPeer(server_context(identity))
    peer.hangs_up = True
    async with served([], take_content=peer.take) as address, streams(tls=client_context(identity)) as running:
        assert await running.ask(address, b"?", whole, idle_s=5) == BODY
        peer.answer = encode_problem(KeyNeeded("only members of the mesh may ask this"))
        with pytest.raises(KeyNeeded):
            await running.ask(address, b"?", whole, idle_s=5)
        peer.answer = NO_PROBLEM + BODY
        assert await running.ask(address, b"?", whole, idle_s=5) == BODY
    assert [reused for _, reused in peer.asked] == [False, True, False]


async def test_who_speaks_no_tls_is_told_apart() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    async with served([], take_content=Peer().take) as address, streams(tls=context) as running:
        with pytest.raises(Unavailable, match="does not speak TLS"):
            await running.ask(address, b"?", whole, idle_s=5)


async def test_an_answer_that_ends_early_is_unavailable() -> None:
    peer = Peer()
    peer.answer, peer.hangs_up = NO_PROBLEM + BODY[1:], True
    async with served([], take_content=peer.take) as address, streams() as running:
        with pytest.raises(Unavailable, match="broke off"):
            await running.ask(address, b"?", whole, idle_s=5)


async def test_nobody_there_is_unavailable() -> None:
    async with streams() as running:
        with pytest.raises(Unavailable, match="cannot be reached"):
            await running.ask("127.0.0.1:1", b"?", whole, idle_s=5)


@pytest.mark.parametrize(
    ("hello", "problem"),
    [(b"", Unavailable), (b"HTTP/1.1 400 Bad Request\r\n\r\n", CorruptContent)],
    ids=["silent", "garbage"],
)
async def test_silent_and_garbled_peers_are_told_apart_in_time(hello: bytes, problem: type[Problem]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def speak() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(hello)
                peer.recv(1 << 16)
                gone.wait(10)

        gone = threading.Event()
        speaking = asyncio.create_task(asyncio.to_thread(speak))
        async with streams() as running:
            with pytest.raises(problem):
                await running.ask(f"127.0.0.1:{listener.getsockname()[1]}", b"?", whole, idle_s=0.3)
        gone.set()
        await speaking


async def test_a_cancelled_call_frees_its_connection_at_once_and_beyond_the_cap_one_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        async with streams(connections=1) as running:
            stream = Stream()
            waiting = asyncio.create_task(running.ask(address, b"?", whole, idle_s=60, stream=stream))
            await until(lambda: stream.connected)
            with pytest.raises(TooManyRequests):
                await running.ask(address, b"?", whole, idle_s=5)
            began = time.monotonic()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert time.monotonic() - began < 5
            assert waiting.cancelled()
            with pytest.raises(Unavailable):
                await running.ask(address, b"?", whole, idle_s=0.2)
