"""What people type as the URL of a controller."""

from __future__ import annotations

import asyncio

import pytest

from client.controller import ControllerClient
from client.rest import base_url
from protocol.problems import ConfigError, ControllerUnreachable


@pytest.mark.parametrize(
    "typed", ["10.1.0.10:7400", "http://10.1.0.10:7400", "http://10.1.0.10:7400/", "http://10.1.0.10:7400/v1/"]
)
def test_the_scheme_may_be_left_out_and_the_path_given(typed: str) -> None:
    assert base_url(typed) == "http://10.1.0.10:7400"


@pytest.mark.parametrize("typed", ["", "ftp://10.1.0.10", "http://", "http://a b"])
def test_anything_else_is_refused_with_an_example(typed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        base_url(typed)
    assert "http://" in caught.value.fix


async def test_a_port_that_speaks_something_else_is_told_in_words() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x15\x03\x03\x00\x02\x02\x46 a TLS alert\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with ControllerClient(url, attempts=1) as client:
            with pytest.raises(ControllerUnreachable, match="what listens there does not speak HTTP"):
                await client.health()
