"""Calls of other nodes: whatever address a member has signed, who asks there gets a Problem."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from dht.peer_connections import PeerConnector
from dht.peer_http import PeerHttp
from dht.swarm.peer_streams import running_streams
from protocol.problems import Unavailable

NO_HOSTS = ["a" * 70 + ":80", "a..b:80", ".a:80", "[::1:80", ":::80", "127.0.0.1:99999"]
"""They are addresses to `protocol.records`, and none of the network."""


@pytest.fixture
async def http() -> AsyncIterator[PeerHttp]:
    async with aiohttp.ClientSession(connector=PeerConnector()) as session:
        yield PeerHttp(session, None)


@pytest.mark.parametrize("address", NO_HOSTS)
async def test_a_host_that_cannot_be_one_is_unreachable(http: PeerHttp, address: str) -> None:
    with pytest.raises(Unavailable, match="cannot be reached"):
        async with http.request("GET", address, "/", timeout_s=3.0):
            raise AssertionError("no such connection is possible")
    with pytest.raises(Unavailable, match="cannot be reached"):
        async with http.websocket(address, "/", max_frame=1024):
            raise AssertionError("no such connection is possible")


@pytest.mark.parametrize("address", NO_HOSTS)
async def test_no_chunks_come_from_a_host_that_cannot_be_one(http: PeerHttp, address: str) -> None:
    async with running_streams(http, connections=1) as streams:
        with pytest.raises(Unavailable, match="cannot be reached"):
            await streams.ask(address, b"", lambda stream: None, idle_s=1.0)
