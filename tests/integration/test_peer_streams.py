"""Large answers of peers: kept connections, cancellation, hostile and silent peers."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from dht.peer_http import PeerHttp
from dht.peer_streams import PeerStreams, Stream, running_streams
from protocol.problems import CorruptContent, NotFound, TooManyRequests, Unavailable
from tests.content_sites import served
from tests.waiting import until

BODY = bytes(range(256)) * 2000


@asynccontextmanager
async def streams(connections: int = 4) -> AsyncIterator[PeerStreams]:
    async with (
        aiohttp.ClientSession() as session,
        running_streams(PeerHttp(session, None), connections=connections) as running,
    ):
        yield running


def whole(stream: Stream) -> bytes:
    buffer = bytearray(stream.left)
    stream.read_into(memoryview(buffer))
    return bytes(buffer)


class Peer:
    def __init__(self) -> None:
        self.connections: set[int] = set()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        self.connections.add(request.transport.get_extra_info("peername")[1])
        if request.path == "/close":
            response = web.Response(body=BODY)
            response.force_close()
            return response
        if request.path == "/endless":
            stream = web.StreamResponse()
            await stream.prepare(request)
            await stream.write(BODY)
            return stream
        if request.path == "/absent":
            raise NotFound("it is not here")
        return web.Response(body=await request.read() + BODY)

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/{tail:.*}", self.answer)]


async def test_a_connection_is_kept_and_used_again() -> None:
    peer = Peer()
    async with served(peer.routes()) as address, streams() as running:
        for _ in range(3):
            assert await running.post(address, "/", b"asked", whole, idle_s=5) == b"asked" + BODY
        with pytest.raises(NotFound):
            await running.post(address, "/absent", b"", whole, idle_s=5)
    assert len(peer.connections) == 1


async def test_a_connection_that_the_peer_closed_is_made_anew() -> None:
    peer = Peer()
    async with streams() as running:
        async with served(peer.routes()) as address:
            assert await running.post(address, "/", b"", whole, idle_s=5) == BODY
        async with served(peer.routes(), address=address):
            assert await running.post(address, "/", b"", whole, idle_s=5) == BODY
            assert await running.post(address, "/close", b"", whole, idle_s=5) == BODY
            assert await running.post(address, "/", b"", whole, idle_s=5) == BODY


async def test_a_part_read_answer_ends_its_connection() -> None:
    peer = Peer()
    async with served(peer.routes()) as address, streams() as running:
        await running.post(address, "/", b"", lambda stream: stream.read_into(memoryview(bytearray(10))), idle_s=5)
        assert await running.post(address, "/", b"", whole, idle_s=5) == BODY
    assert len(peer.connections) == 2


async def test_an_answer_without_a_length_or_shorter_than_asked_is_refused() -> None:
    async with served(Peer().routes()) as address, streams() as running:
        with pytest.raises(CorruptContent, match="without a length"):
            await running.post(address, "/endless", b"", whole, idle_s=5)
        with pytest.raises(Unavailable, match="broke off"):
            await running.post(
                address, "/", b"", lambda stream: stream.read_into(memoryview(bytearray(len(BODY) + 1))), idle_s=5
            )


async def test_nobody_there_is_unavailable() -> None:
    async with streams() as running:
        with pytest.raises(Unavailable, match="cannot be reached"):
            await running.post("127.0.0.1:1", "/", b"", whole, idle_s=5)


@pytest.mark.parametrize("hello", [b"", b"not HTTP at all\r\n\r\n"], ids=["silent", "garbage"])
async def test_silent_and_garbled_peers_are_unavailable_in_time(hello: bytes) -> None:
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
            with pytest.raises(Unavailable):
                await running.post(f"127.0.0.1:{listener.getsockname()[1]}", "/", b"", whole, idle_s=0.3)
        gone.set()
        await speaking


async def test_a_cancelled_call_frees_its_connection_at_once_and_beyond_the_cap_one_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        async with streams(connections=1) as running:
            stream = Stream()
            waiting = asyncio.create_task(running.post(address, "/", b"", whole, idle_s=60, stream=stream))
            await until(lambda: stream.connected)
            with pytest.raises(TooManyRequests):
                await running.post(address, "/", b"", whole, idle_s=5)
            began = time.monotonic()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert time.monotonic() - began < 5
            assert waiting.cancelled()
            with pytest.raises(Unavailable):
                await running.post(address, "/", b"", whole, idle_s=0.2)
