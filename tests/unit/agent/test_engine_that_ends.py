"""An engine ends its containers before it ends itself: what it says then is not the service's own end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from agent.docker.containers import INSTANCE_LABEL, NODE_LABEL
from agent.docker.images import image_tag
from agent.docker.runtime import DockerConfig, DockerRuntime, running_docker
from agent.runtime import Condition, EventKind, Source
from protocol.problems import BuildFailed, EngineUnavailable
from protocol.service import ServiceDescriptor
from tests.agent_stage import Shelf
from tests.waiting import until

NODE = "0" * 40
WEB = ServiceDescriptor(
    id="web", name="web", kind="docker_container", category="/web", mem_requirement=16, entry="w.yaml", directory="src"
)
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
        self.last_words = b""
        self.last_act: Callable[[], Awaitable[None]] | None = None
        self.cut: Callable[[], None] = lambda: None
        self.names: list[str] = []
        self.listed = 0
        """How often it was asked for its images."""
        self.news: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        """For its event stream."""

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/version", self.version)
        app.router.add_get(r"/{version:(v[0-9.]+/)?}_ping", self.ping)
        app.router.add_get("/{version}/info", self.info)
        app.router.add_get("/{version}/events", self.events)
        app.router.add_get("/{version}/images/json", self.images)
        app.router.add_get("/{version}/containers/{name}/json", self.inspect)
        app.router.add_post("/{version}/build", self.build)
        app.router.add_route("*", "/{rest:.*}", self.absent)
        return app

    async def version(self, _request: web.Request) -> web.Response:
        return web.json_response({"ApiVersion": "1.41", "Version": "20.10", "Arch": "none"})

    async def info(self, _request: web.Request) -> web.Response:
        return web.json_response({"ID": "an engine"})

    async def ping(self, _request: web.Request) -> web.Response:
        return web.Response(text="OK")

    async def images(self, _request: web.Request) -> web.Response:
        self.listed += 1
        return web.json_response([{"RepoTags": self.names}])

    async def absent(self, _request: web.Request) -> web.Response:
        return web.json_response({"message": "No such thing"}, status=404)

    async def inspect(self, _request: web.Request) -> web.Response:
        self.asked.set()
        await self.inspecting.wait()
        return web.json_response(ENDED)

    async def build(self, request: web.Request) -> web.StreamResponse:
        """Begins, says the last words, acts, and is gone: cut off where there is an act."""
        await request.read()
        assert request.transport is not None
        self.cut = request.transport.abort
        answer = web.StreamResponse()
        answer.enable_chunked_encoding()
        await answer.prepare(request)
        await answer.write(b'{"stream":"Step 1/2 : FROM busybox"}\r\n')
        await answer.write(self.last_words)
        if self.last_act is not None:
            await self.last_act()
        return answer

    async def events(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        end = asyncio.Event()
        self.streams.append(end)
        telling = asyncio.create_task(self._tell(answer))
        await end.wait()
        telling.cancel()
        return answer

    async def _tell(self, answer: web.StreamResponse) -> None:
        while True:
            await answer.write(msgspec.json.encode(await self.news.get()) + b"\n")


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


@pytest.mark.parametrize("cut", [True, False], ids=["cut-off", "in-order"])
@pytest.mark.parametrize(
    "last_words",
    [b"", b'{"stream":"Step 2/', b'{"error":"The command returned a non-zero code: 137"}\r\n'],
    ids=["silent", "mid-word", "its-build-was-killed"],
)
async def test_a_build_that_its_engine_takes_along_is_no_failed_build(
    tmp_path: Path, last_words: bytes, cut: bool
) -> None:
    async with engine(tmp_path) as (fake, door, runtime):
        shelf = Shelf(tmp_path)
        digest = shelf.put(WEB, {"src/Dockerfile": "FROM busybox\nRUN sleep 8\n"})

        async def act() -> None:
            await door.close()
            if cut:
                fake.cut()

        fake.last_words, fake.last_act = last_words, act
        with pytest.raises(EngineUnavailable):
            await runtime.prepare(Source(descriptor=WEB, digest=digest, archive=shelf.here[digest]))
        await door.open()


async def test_a_build_whose_answer_ends_too_early_is_no_image(tmp_path: Path) -> None:
    async with engine(tmp_path) as (_, _, runtime):
        shelf = Shelf(tmp_path)
        digest = shelf.put(WEB, {"src/Dockerfile": "FROM busybox\n"})
        with pytest.raises(BuildFailed, match="ended before the build did"):
            await runtime.prepare(Source(descriptor=WEB, digest=digest, archive=shelf.here[digest]))


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


async def test_the_engine_is_asked_for_its_images_only_after_they_changed(tmp_path: Path) -> None:
    """A heartbeat tells every 2 s what is built; an engine may have a thousand images."""
    digest = "sha256:" + "5" * 64

    async with engine(tmp_path) as (fake, _, runtime):
        assert await runtime.built([digest]) == frozenset()
        assert await runtime.built([digest]) == frozenset()
        assert fake.listed == 2, "nobody watches: it has to be asked each time"

        async with aclosing(runtime.events()) as events:
            assert (await anext(events)).kind is EventKind.BACK
            following = asyncio.create_task(anext(events))
            for _ in range(5):
                assert await runtime.built([digest]) == frozenset()
            assert fake.listed == 3
            fake.names.append(image_tag(digest, None))
            fake.news.put_nowait({"Type": "image", "Action": "tag"})

            async def is_built() -> bool:
                return await runtime.built([digest]) == {digest}

            await until(is_built)
            assert fake.listed == 4
            fake.streams[-1].set()
            assert (await following).kind is EventKind.AWAY
        fake.names.clear()
        assert await runtime.built([digest]) == frozenset(), "it may have changed unseen"
