"""Listeners that take nothing: their connections are cut off after a while."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web

from protocol.events import AgentLost, News
from protocol.instances import OnProgress, Progress
from region_controller import event_stream
from tests.content_sites import served
from tests.waiting import until

BIG = "x" * 100_000


async def much_news() -> AsyncIterator[News]:
    while True:
        yield AgentLost(BIG)


async def work_without_end(on_progress: OnProgress) -> object:
    while True:
        on_progress(Progress("fetch", BIG))
        await asyncio.sleep(0)


async def much_at_once(_: OnProgress) -> object:
    return [BIG] * 100


@pytest.mark.parametrize(
    "answer",
    [
        lambda request: event_stream.follow(request, much_news()),
        lambda request: event_stream.stream(request, work_without_end),
        lambda request: event_stream.stream(request, much_at_once),
    ],
    ids=["live events", "steps", "a result"],
)
async def test_who_takes_nothing_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> None:
    monkeypatch.setattr(event_stream, "STALLED_S", 0.2)
    asked: list[web.Request] = []

    async def get(request: web.Request) -> web.StreamResponse:
        asked.append(request)
        return await answer(request)

    loop = asyncio.get_running_loop()
    async with served([web.get("/", get)]) as address:
        host, _, port = address.rpartition(":")
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            listener.setblocking(False)
            await loop.sock_connect(listener, (host, int(port)))
            await loop.sock_sendall(listener, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: asked and asked[0].transport is not None)
            await until(lambda: asked[0].transport is None, timeout_s=5)
