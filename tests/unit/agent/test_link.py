"""The agent's link to a controller that the test plays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import aiohttp
import pytest
from aiohttp import web

from agent.agent import Agent, AgentConfig, running_agent
from agent.link import PATH
from agent.memory_runtime import MemoryRuntime, running_memory_runtime
from agent.runtime import RuntimeInstance, Workload
from dht.peer_http import PeerHttp
from protocol import link
from protocol.instances import State
from protocol.problems import Problem, UnknownInstance
from protocol.tracing import current_header
from tests.agent_stage import SERVICE, Shelf, start_command
from tests.waiting import until

NODE = "a" * 40
T = TypeVar("T", bound=link.FromAgent)


class PlayedController:
    """Accepts links, says Welcome, and hands the test what the agent says."""

    def __init__(self) -> None:
        self.said: asyncio.Queue[link.FromAgent] = asyncio.Queue()
        self.socket: web.WebSocketResponse | None = None
        self.address = ""

    async def accept(self, request: web.Request) -> web.WebSocketResponse:
        socket = self.socket = web.WebSocketResponse(max_msg_size=link.MAX_FRAME)
        await socket.prepare(request)
        async for message in socket:
            said = link.decode_from_agent(message.data)
            if isinstance(said, link.Hello):
                await socket.send_bytes(link.encode(link.Welcome(1, "c" * 40, "eu/test", heartbeat_s=0.05)))
            self.said.put_nowait(said)
        return socket

    async def send(self, command: link.Command) -> None:
        assert self.socket is not None
        await self.socket.send_bytes(link.encode(command))

    async def hear(self, kind: type[T]) -> T:
        """The next message of this kind; others are dropped."""
        async with asyncio.timeout(10):
            while True:
                said = await self.said.get()
                if isinstance(said, kind):
                    return said


class Heard:
    """A Locator that tells what it was told: the way of `ControllerBrowser`, without multicast."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)

    async def locate(self) -> list[str]:
        return list(self.addresses)

    def failed(self, address: str) -> None:
        self.addresses.remove(address)


@asynccontextmanager
async def linked(tmp_path: Path) -> AsyncIterator[tuple[PlayedController, Agent, MemoryRuntime, Shelf]]:
    controller, shelf = PlayedController(), Shelf(tmp_path)
    app = web.Application()
    app.router.add_get(PATH, controller.accept)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    address = f"127.0.0.1:{runner.addresses[0][1]}"

    locator = Heard("127.0.0.1:1", address)
    config = AgentConfig(host="127.0.0.1", database=tmp_path / "agent.sqlite", alive_port=0, labels={"gpu": "no"})
    async with (
        running_memory_runtime(NODE) as runtime,
        aiohttp.ClientSession() as session,
        running_agent(
            config,
            node=NODE,
            mesh="test",
            region="eu/test",
            runtimes=[runtime],
            content=shelf,
            describe=shelf.describe,
            http=PeerHttp(session, None),
            locator=locator,
        ) as agent,
    ):
        yield controller, agent, runtime, shelf
        assert locator.addresses == [address], "the address where nobody listens is dropped, the other is not"
    await runner.cleanup()


async def test_hello_then_heartbeats_then_commands_and_their_answers(tmp_path: Path) -> None:
    async with linked(tmp_path) as (controller, _, _, shelf):
        hello = await controller.hear(link.Hello)
        assert (hello.node, hello.resources.runtimes, hello.labels) == (NODE, ("memory",), {"gpu": "no"})
        assert (await controller.hear(link.Heartbeat)).resources.memory_free == 2048

        await controller.send(start_command("one", shelf.put(SERVICE)))
        assert (await controller.hear(link.InstanceChanged)).report.state is State.FETCHING
        assert (await controller.hear(link.ProgressMade)).command == "start-one"
        done = await controller.hear(link.Done)
        assert (done.command, done.report.state) == ("start-one", State.RUNNING)
        assert done.timings_ms["total"] > 0

        await controller.send(link.Stop("c2", "nobody"))
        refused = await controller.hear(link.Refused)
        assert refused.command == "c2"
        assert isinstance(Problem.from_dict(refused.problem), UnknownInstance)

        for command in (
            link.Extend("c3", "one", 1000),
            link.Keep("c4", "one", 60),
            link.Wake("c8", "one"),
            link.Restart("c5", "one"),
            link.ReadLog("c6", "one", 1),
            link.Remove("c7", "one"),
        ):
            await controller.send(command)
            done = await controller.hear(link.Done)
            assert (done.command, done.lines) == (command.command, ("started",) if command.command == "c6" else ())


async def test_what_is_done_for_a_request_belongs_to_its_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with linked(tmp_path) as (controller, _, runtime, shelf):
        seen: list[str] = []
        start = runtime.start

        async def starting(workload: Workload) -> RuntimeInstance:
            seen.append(current_header())
            return await start(workload)

        monkeypatch.setattr(runtime, "start", starting)
        await controller.hear(link.Hello)
        await controller.send(start_command("one", shelf.put(SERVICE), trace="00-" + "a" * 32 + "-" + "b" * 16 + "-01"))
        await controller.hear(link.Done)
        assert [header.split("-")[1] for header in seen] == ["a" * 32]


async def test_a_service_is_prepared_before_anybody_asks_for_it(tmp_path: Path) -> None:
    async with linked(tmp_path) as (controller, agent, runtime, shelf):
        digest = shelf.put(SERVICE, remote=True)
        await controller.hear(link.Hello)
        await controller.send(link.Prepare(command="c1", digest=digest))
        assert {(await controller.hear(link.ProgressMade)).progress.phase for _ in range(2)} == {"fetch", "verify"}
        prepared = await controller.hear(link.Prepared)
        assert (prepared.command, prepared.timings_ms.keys()) == ("c1", {"fetch", "verify", "build", "total"})
        assert (await agent.resources()).built == (digest,)
        assert agent.reports() == ()

        await controller.send(link.Prepare(command="c2", digest="sha256:" + "0" * 64))
        assert (await controller.hear(link.Refused)).command == "c2"
        await controller.send(start_command("one", digest))
        assert "build" not in (await controller.hear(link.Done)).timings_ms
        assert runtime.builds == 1


async def test_a_lost_link_stops_nothing_and_the_next_hello_tells(tmp_path: Path) -> None:
    async with linked(tmp_path) as (controller, _, runtime, shelf):
        await controller.hear(link.Hello)
        runtime.behaviour.start_s = 0.3
        await controller.send(start_command("one", shelf.put(SERVICE)))
        await controller.hear(link.InstanceChanged)
        assert controller.socket is not None
        await controller.socket.close()
        hello = await controller.hear(link.Hello)
        assert [report.instance for report in hello.instances] == ["one"]
        while (await controller.hear(link.InstanceChanged)).report.state is not State.RUNNING:
            pass


async def test_logs_follow_the_hello(tmp_path: Path) -> None:
    async with linked(tmp_path) as (controller, agent, runtime, shelf):
        await controller.hear(link.Hello)
        await agent.runner.start(start_command("one", shelf.put(SERVICE)))
        await runtime.crash("one", 1)
        await until(lambda: agent.reports()[0].state is State.FAILED)
        assert controller.socket is not None
        await controller.socket.close()
        hello = await controller.hear(link.Hello)
        assert [(r.instance, r.state, r.log) for r in hello.instances] == [("one", State.FAILED, ())]
        told = (await controller.hear(link.InstanceChanged)).report
        assert (told.instance, told.log[-1]) == ("one", "ends with 1")
