"""Whom a controller lets dial its agent link, which frames end it, and what of its news reaches the mesh."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from protocol import link
from protocol.instances import StartRequest, State
from protocol.link import Hello
from region_controller.journal import Journal
from tests.fake_agent import PATH, FakeAgent
from tests.one_region import Site, a_service, node_of, running_site
from tests.waiting import until

NODE = node_of("agent")


def a_hello(**changes: Any) -> Hello:
    return msgspec.structs.replace(FakeAgent(NODE, "eu/de").hello, **changes)


async def answer_to(site: Site, *frames: bytes | str, mesh: str = "demo") -> tuple[int | None, str]:
    """Close code and reason after the frames."""
    headers = {"Test-Peer": f"{NODE} {mesh} eu/de agent"}
    async with aiohttp.ClientSession() as session, session.ws_connect(site.peer + PATH, headers=headers) as socket:
        for frame in frames:
            await (socket.send_str(frame) if isinstance(frame, str) else socket.send_bytes(frame))
        message = await socket.receive()
        if message.type is aiohttp.WSMsgType.BINARY:
            assert isinstance(link.decode_from_controller(message.data), link.Welcome)
            message = await socket.receive()
        assert message.type is aiohttp.WSMsgType.CLOSE
        return socket.close_code, str(message.extra)


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"node": node_of("somebody else")}, 4403, "another node"),
        ({"mesh": "other"}, 4403, "another mesh"),
        ({"region": "eu"}, 4403, "serves eu/de, not eu"),
        ({"region": "eu/dee"}, 4403, "serves eu/de, not eu/dee"),
        ({"version": 99}, 4409, "version 99"),
    ],
)
async def test_a_hello_that_does_not_fit_closes_the_link(
    tmp_path: Path, changes: dict[str, Any], code: int, says: str
) -> None:
    async with running_site(tmp_path) as site:
        closed, reason = await answer_to(site, link.encode(a_hello(**changes)))
        assert closed == code
        assert says in reason
        assert site.controller.agents() == []


@pytest.mark.parametrize(
    "frames",
    [[b"garbage"], ["text"], [link.encode(link.Heartbeat(link.Resources(1, 1)))]],
    ids=["bytes", "text", "beat"],
)
async def test_no_hello_no_link(tmp_path: Path, frames: list[bytes | str]) -> None:
    async with running_site(tmp_path) as site:
        assert (await answer_to(site, *frames))[0] == 4400


async def test_garbage_after_hello_ends_the_link(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        hello = link.encode(a_hello())
        assert (await answer_to(site, hello, b"garbage"))[0] == 4400
        assert (await answer_to(site, hello, hello))[0] == 4400
        await until(lambda: not site.controller.agents())


async def test_only_the_role_agent_may_dial(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, aiohttp.ClientSession() as session:
        for headers in ({}, {"Test-Peer": f"{NODE} demo eu/de controller"}):
            async with session.get(site.peer + PATH, headers=headers) as response:
                assert response.status == 403


async def test_an_agent_of_a_region_below_may_link(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, FakeAgent(NODE, "eu/de/da").linked(site.peer):
        assert [a.node for a in site.controller.agents()] == [NODE]


async def test_an_agent_prepares_what_it_is_told_to(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, FakeAgent(NODE, "eu/de").linked(site.peer) as agent:
        digest = "sha256:" + "a" * 64
        prepared = await site.controller.links.link(NODE).prepare(
            link.Prepare(command="c1", digest=digest), timeout_s=5.0
        )
        assert (prepared.timings_ms, agent.built) == ({"build": 2.0}, {digest})


async def test_a_newer_link_replaces_the_older(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        await site.publish(a_service())
        first, second = FakeAgent(NODE, "eu/de"), FakeAgent(NODE, "eu/de")
        async with first.linked(site.peer), second.linked(site.peer):
            await site.controller.start(StartRequest(service="svc"))
            assert (len(first.starts), len(second.starts)) == (0, 1)


async def test_news_of_an_agent_show_in_views_and_in_the_mesh(tmp_path: Path) -> None:
    agent = FakeAgent(NODE, "eu/de")
    async with running_site(tmp_path) as site, agent.linked(site.peer):

        async def announced(free: int) -> bool:
            return [r.memory_free for r in await site.directory.regions("region:eu/de")] == [free]

        await until(lambda: announced(1000))
        await site.publish(a_service())
        answer, _ = await site.controller.start(StartRequest(service="svc"))
        await agent.beat()
        await until(lambda: announced(900))
        await agent.report(answer.instance, state=State.FAILED, reason="out of memory", log=("Killed",))
        await until(lambda: site.controller.instances()[0].state is State.FAILED)
        view = await site.controller.instance(answer.instance)
        assert (view.reason, view.log) == ("out of memory", ("Killed",))
        again, cold = await site.controller.start(StartRequest(service="svc"))
        assert cold
        assert again.instance != answer.instance


async def test_a_warm_start_asks_neither_mesh_nor_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_site(tmp_path) as site, FakeAgent(NODE, "eu/de").linked(site.peer) as agent:
        await site.publish(a_service())
        await site.controller.start(StartRequest(service="svc"))

        flushed_by: list[asyncio.Task[Any] | None] = []

        async def ask_nobody(_: str) -> Any:
            raise AssertionError("the warm path must not come here")

        async def note_flush(_: Journal) -> None:
            flushed_by.append(asyncio.current_task())

        monkeypatch.setattr(site.directory, "services", ask_nobody)
        monkeypatch.setattr(Journal, "flush", note_flush)
        commands = len(agent.commands)
        answer, cold = await site.controller.start(StartRequest(service="svc", alive_time=1))
        monkeypatch.undo()
        assert (cold, answer.start) == (False, "warm")
        assert len(agent.commands) == commands
        assert asyncio.current_task() not in flushed_by
