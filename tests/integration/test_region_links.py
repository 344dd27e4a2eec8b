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
from protocol.instances import StartRequest, State
from protocol.link import Remove, Stop
from protocol.problems import NoCapacity, Unavailable
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


async def test_two_controllers_of_one_region_keep_their_promises_through_a_partition(tmp_path: Path) -> None:
    mesh, cut = MemoryMesh(), asyncio.Event()
    async with (
        running_site(tmp_path, "demo", mesh=mesh, name="one", cut=cut.is_set) as one,
        running_site(tmp_path, "demo", mesh=mesh, name="two", cut=cut.is_set) as two,
        FakeAgent(node_of("agent of two"), "demo").linked(two.peer) as theirs,
    ):
        await one.publish(a_service())
        first, _ = await one.controller.start(REQUEST)
        holder = Caller(first.lease.token)

        cut.set()
        with pytest.raises(NoCapacity):
            async with asyncio.timeout(1.0):
                await one.controller.start(REQUEST)
        with pytest.raises(Unavailable):
            await one.controller.alive(first.instance, holder, 600)
        view = await two.controller.alive(first.instance, holder, 600)
        assert view.expires_at == theirs.instances[first.instance].expires_at, "the lease works where it is kept"

        async with FakeAgent(node_of("agent of one"), "demo").linked(one.peer) as ours:
            second, was_cold = await one.controller.start(REQUEST)
            assert (was_cold, second.handoff) == (True, ()), "each goes on with its own agents"
            assert (await two.controller.start(REQUEST))[0].instance == first.instance

            cut.clear()
            for site in (one, two):
                await hears_the_other(site)
            mine, _ = await one.controller.start(REQUEST)
            assert mine.instance == second.instance
            assert (await one.controller.alive(first.instance, holder, 900)).state is State.RUNNING
            assert (await one.controller.alive(second.instance, Caller(second.lease.token))).state is State.RUNNING
            assert not [c for a in (ours, theirs) for c in a.commands if isinstance(c, Stop | Remove)]


async def hears_the_other(site: Site) -> None:
    async def heard() -> bool:
        return any(
            v.live and v.region == "demo" and v.relation == "self" for v in (await site.controller.regions())[1:]
        )

    await until(heard, timeout_s=10.0)


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
