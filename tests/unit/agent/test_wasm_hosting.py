"""When a host that dies is started again, and what its node says to it."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from agent.wasm.commands import MAX_FRAME, Answer, Command, Done, Open, framed, read_frame
from agent.wasm.hosting import MAX_DEATHS, PERIOD_S, dies_too_often


def test_a_few_deaths_are_forgiven_and_many_at_once_are_not() -> None:
    deaths = [100.0 + n for n in range(MAX_DEATHS)]
    assert not dies_too_often(deaths[:-1], 103.0)
    assert dies_too_often(deaths, 103.0)
    assert dies_too_often(deaths, 100.0 + PERIOD_S - 1)
    assert not dies_too_often(deaths, 100.0 + PERIOD_S)


async def read(data: bytes, kind: object) -> object:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return await read_frame(reader, msgspec.msgpack.Decoder(kind))


async def test_messages_come_back_as_they_were() -> None:
    command = Open(number=7, instance="one", sha256="ab", mem=4, fuel=None, timeout_s=1.5, variables={"A": "b"})
    assert await read(framed(command), Command) == command
    assert await read(framed(Done(7, ("a line",))), Answer) == Done(7, ("a line",))
    assert await read(framed(command)[:-1], Command) is None, "the other side ended"


async def test_a_host_that_was_taken_over_costs_no_memory() -> None:
    with pytest.raises(ValueError, match="a frame of"):
        await read((MAX_FRAME + 1).to_bytes(4, "big"), Answer)
    with pytest.raises(msgspec.MsgspecError):
        await read(b"\x00\x00\x00\x01\xc0", Answer)
