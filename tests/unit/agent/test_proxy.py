"""The port proxy on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from agent.proxy import PortProxy, running_proxy
from protocol.problems import DiskFull, PortTaken
from tests.waiting import until

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[tuple[str, int]]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()


async def echo_at_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers only after the client has shut its side."""
    writer.write(await reader.read())
    writer.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def proxied(
    upstream: tuple[str, int] | None, traffic: list[str] | None = None
) -> AsyncIterator[tuple[PortProxy, int]]:
    async with running_proxy("127.0.0.1", (traffic if traffic is not None else []).append) as proxy:
        yield proxy, await proxy.open("one", 80, lambda: upstream)


async def test_a_half_closed_connection_still_gets_its_answer() -> None:
    async with serving(echo_at_the_end) as upstream, proxied(upstream) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"a question")
        writer.write_eof()
        assert await reader.read() == b"a question"
        writer.close()


@pytest.mark.parametrize("service_ends_first", [True, False])
async def test_finished_connections_make_room_for_others(
    monkeypatch: pytest.MonkeyPatch, service_ends_first: bool
) -> None:
    monkeypatch.setattr("agent.proxy.MAX_CONNECTIONS", 2)

    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(1))
        if not service_ends_first:
            await reader.read()
        writer.close()

    async def served(port: int) -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(b"?")
            return await reader.readexactly(1) == b"?" and (not service_ends_first or await reader.read() == b"")
        except (ConnectionResetError, asyncio.IncompleteReadError):
            return False
        finally:
            writer.close()

    async with serving(answer_once) as upstream, proxied(upstream) as (_, port):
        for _ in range(8):
            await until(lambda: served(port))


async def test_megabytes_pass_unchanged() -> None:
    payload = bytes(range(256)) * (16 << 10)
    async with serving(echo) as upstream, proxied(upstream) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(payload)
        assert await reader.readexactly(len(payload)) == payload
        writer.close()


async def test_a_client_that_does_not_read_stops_the_service_from_sending() -> None:
    sent = 0

    ended = asyncio.Event()

    async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        try:
            while True:
                writer.write(bytes(1 << 16))
                sent += 1 << 16
                await writer.drain()
        except ConnectionError:
            writer.close()
            ended.set()

    async with serving(flood) as upstream, proxied(upstream) as (proxy, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        before = -1

        async def settled() -> bool:
            nonlocal before
            still, before = before == sent > 0, sent
            return still

        await until(settled, every_s=0.2)
        assert sent < 64 << 20, "kernel buffers and two high-water marks, not the whole stream"
        await proxy.cut("one")
        await asyncio.wait_for(ended.wait(), 5)
        writer.close()


async def test_a_stopped_instance_keeps_its_port_and_resets_clients() -> None:
    async with proxied(None) as (proxy, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        with pytest.raises(PortTaken):
            await proxy.open("two", 80, lambda: None, port=port)
        await proxy.close("one")
        assert await proxy.open("two", 80, lambda: None, port=port) == port


async def test_a_request_in_flight_counts_as_busy_until_it_is_answered() -> None:
    answer = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        await answer.wait()
        writer.write(b"done")
        await writer.drain()
        await reader.read()
        writer.close()

    traffic: list[str] = []
    async with serving(slow) as upstream, proxied(upstream, traffic) as (proxy, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert not proxy.busy("one")
        writer.write(b"?")
        await until(lambda: proxy.busy("one"))
        answer.set()
        assert await reader.readexactly(4) == b"done"
        assert not proxy.busy("one")
        assert traffic == ["one"], "counted at most once a second"
        writer.close()


async def test_a_service_that_refuses_resets_the_client() -> None:
    async with serving(echo) as upstream:
        pass
    async with proxied(upstream) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


async def test_an_address_of_another_machine_is_named() -> None:
    async with running_proxy("192.0.2.1", lambda _: None) as proxy:
        with pytest.raises(PortTaken, match="not an address of this machine"):
            await proxy.open("one", 80, lambda: None)


async def test_traffic_that_cannot_be_noted_passes_all_the_same() -> None:
    def full(_: str) -> None:
        raise DiskFull("the journal cannot be written")

    async with serving(echo) as upstream, running_proxy("127.0.0.1", full) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", await proxy.open("one", 80, lambda: upstream))
        writer.write(b"a question")
        assert await reader.readexactly(10) == b"a question"
        writer.close()
