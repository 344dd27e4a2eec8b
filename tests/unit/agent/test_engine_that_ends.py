"""An engine ends its containers before it ends itself: what it says then is not the service's own end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from agent.docker_containers import INSTANCE_LABEL, NODE_LABEL
from agent.docker_runtime import DockerConfig, DockerRuntime, running_docker
from agent.runtime import Condition, EventKind
from protocol.problems import EngineUnavailable

NODE = "0" * 40
ENDED = {
    "HostConfig": {"NetworkMode": "bridge"},
    "Config": {"Labels": {NODE_LABEL: NODE, INSTANCE_LABEL: "one"}},
    "NetworkSettings": {"Networks": {}},
    "State": {"Status": "exited", "ExitCode": 143},
}


class FakeEngine:
    """As much of the Engine API as asking after one container takes. `inspecting` answers once it is set."""

    def __init__(self) -> None:
        self.inspecting = asyncio.Event()
        self.inspecting.set()
        self.asked = asyncio.Event()
        self.streams: list[asyncio.Event] = []

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/version", self.version)
        app.router.add_get(r"/{version:(v[0-9.]+/)?}_ping", self.ping)
        app.router.add_get("/{version}/events", self.events)
        app.router.add_get("/{version}/containers/{name}/json", self.inspect)
        app.router.add_route("*", "/{rest:.*}", self.absent)
        return app

    async def version(self, _request: web.Request) -> web.Response:
        return web.json_response({"ApiVersion": "1.41", "Version": "20.10", "Arch": "none"})

    async def ping(self, _request: web.Request) -> web.Response:
        return web.Response(text="OK")

    async def absent(self, _request: web.Request) -> web.Response:
        return web.json_response({"message": "No such thing"}, status=404)

    async def inspect(self, _request: web.Request) -> web.Response:
        self.asked.set()
        await self.inspecting.wait()
        return web.json_response(ENDED)

    async def events(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        end = asyncio.Event()
        self.streams.append(end)
        await end.wait()
        return answer


class Door:
    """Where the engine lets new connections in."""

    def __init__(self, runner: web.AppRunner, path: Path) -> None:
        self.runner = runner
        self.path = path
        self.site: web.UnixSite | None = None

    async def open(self) -> None:
        self.site = web.UnixSite(self.runner, str(self.path))
        await self.site.start()

    async def close(self) -> None:
        assert self.site is not None
        await self.site.stop()


@asynccontextmanager
async def engine(tmp_path: Path) -> AsyncIterator[tuple[FakeEngine, Door, DockerRuntime]]:
    fake = FakeEngine()
    runner = web.AppRunner(fake.app(), shutdown_timeout=0.1)
    await runner.setup()
    door = Door(runner, tmp_path / "docker.sock")
    await door.open()
    try:
        async with running_docker(DockerConfig(url=f"unix://{door.path}", sandboxes=0), NODE) as runtime:
            yield fake, door, runtime
    finally:
        for end in fake.streams:
            end.set()
        await runner.cleanup()


async def test_an_end_is_told_while_the_engine_stays(tmp_path: Path) -> None:
    async with engine(tmp_path) as (_, _, runtime):
        seen = await runtime.inspect("one")
        assert seen is not None
        assert (seen.condition, seen.exit_code) == (Condition.EXITED, 143)


async def test_an_engine_that_lets_nobody_in_any_more_has_ended_what_ended(tmp_path: Path) -> None:
    async with engine(tmp_path) as (fake, door, runtime):
        fake.inspecting.clear()
        asking = asyncio.create_task(runtime.inspect("one"))
        await fake.asked.wait()
        await door.close()
        fake.inspecting.set()
        with pytest.raises(EngineUnavailable):
            await asking
        await door.open()


async def test_a_stream_that_ends_is_an_engine_that_went_even_if_its_successor_answers_at_once(tmp_path: Path) -> None:
    async with engine(tmp_path) as (fake, _, runtime), aclosing(runtime.events()) as events:
        assert (await anext(events)).kind is EventKind.BACK
        fake.inspecting.clear()
        asking = asyncio.create_task(runtime.inspect("one"))
        await fake.asked.wait()
        fake.streams[0].set()
        assert (await anext(events)).kind is EventKind.AWAY
        fake.inspecting.set()
        with pytest.raises(EngineUnavailable):
            await asking
        assert (await anext(events)).kind is EventKind.BACK
        assert (await runtime.inspect("one")) is not None
