"""Controllers keep a live link over real sockets: who dies is noticed, who returns is taken up, hand-off goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import msgspec
import pytest

from dht.records.memory_directory import MemoryMesh
from protocol.instances import StartRequest
from region_controller import Caller
from region_controller.summaries import SUMMARIES_PATH, Exchange, Load, Summary
from tests.fake_agent import FakeAgent
from tests.one_region import Site, a_service, node_of, running_site
from tests.waiting import until

REQUEST = StartRequest(service="svc")


async def hears(site: Site, *regions: str) -> None:
    """Exactly these, live."""

    async def heard() -> bool:
        return {v.region for v in await site.controller.regions() if v.live and v.relation != "self"} == set(regions)

    await until(heard, timeout_s=10.0)


async def test_the_parent_dies_siblings_hand_off_and_it_returns(tmp_path: Path) -> None:
    mesh = MemoryMesh()
    async with (
        running_site(tmp_path, "demo/a", mesh=mesh) as a,
        running_site(tmp_path, "demo/b", mesh=mesh) as b,
    ):
        await a.publish(a_service())
        async with AsyncExitStack() as parents:
            await parents.enter_async_context(running_site(tmp_path, "demo", mesh=mesh))
            await hears(a, "demo", "demo/b")
            await hears(b, "demo", "demo/a")
        await hears(a, "demo/b")
        async with FakeAgent(node_of("agent"), "demo/b").linked(b.peer):
            answer, _ = await a.controller.start(REQUEST)
            assert (answer.region, answer.handoff) == ("demo/b", ("demo/a",))
        async with running_site(tmp_path, "demo", mesh=mesh) as parent:
            await hears(a, "demo", "demo/b")
            await hears(parent, "demo/a", "demo/b")


async def test_two_controllers_of_one_region_are_both_active_and_host_for_each_other(tmp_path: Path) -> None:
    mesh = MemoryMesh()
    async with (
        running_site(tmp_path, "demo", mesh=mesh, name="one") as one,
        running_site(tmp_path, "demo", mesh=mesh, name="two") as two,
        FakeAgent(node_of("agent"), "demo").linked(two.peer),
    ):
        await one.publish(a_service())
        answer, _ = await one.controller.start(REQUEST)
        assert (answer.region, answer.handoff) == ("demo", ("demo",))
        own, _ = await two.controller.start(REQUEST)
        assert (own.instance, own.handoff) == (answer.instance, ()), "each leads the agents that dialled it"
        stopped = await one.controller.stop(answer.instance, Caller(answer.lease.token))
        assert "1 other lease" in stopped.reason, "a lease is kept where it was granted, and works where it was asked"


async def test_a_controller_speaks_for_itself_only_and_says_it_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_site(tmp_path, "demo") as site:

        async def tell(node: str, data: bytes | AsyncIterator[bytes], role: str = "controller") -> int:
            headers = {"Test-Peer": f"{node} demo demo/x {role}"}
            url = site.peer + SUMMARIES_PATH
            async with aiohttp.ClientSession(headers=headers) as session, session.post(url, data=data) as response:
                return response.status

        me = node_of("x")
        good = msgspec.msgpack.encode(Exchange(Summary("demo/x", me, ("10.0.0.1:1",), 1, 1, Load())))
        assert await tell(me, good) == 200
        assert await tell(me, good, "agent") == 403
        assert await tell(node_of("y"), good) == 403
        assert await tell(me, b"\x93nonsense") == 400
        assert await tell(me, bytes(100_000)) == 413
        monkeypatch.setattr("region_controller.api.BODY_S", 0.05)
        assert await tell(me, held_back()) == 400


async def held_back() -> AsyncIterator[bytes]:
    yield b"\x93"
    await asyncio.Event().wait()  # and no more
