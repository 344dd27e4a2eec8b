"""What every runtime promises (`agent.runtime`), checked against the fake, WebAssembly and Docker."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from agent.memory_runtime import running_memory_runtime
from agent.runtime import IMAGE_GONE, Condition, EventKind, Runtime, RuntimeInstance, Source, Workload
from agent.wasm.runtime import WasmRuntime, running_wasm
from csar import extract_file
from protocol.problems import StartFailed
from protocol.service import ContainerPort, ServiceDescriptor
from tests.agent_stage import Shelf
from tests.docker_stage import WEB_FILES, clean_docker
from tests.waiting import until
from tests.wasm_stage import HELLO, MODULE, wat

DESCRIPTOR = ServiceDescriptor(
    id="web",
    name="web",
    kind="docker_container",
    category="/web",
    mem_requirement=16,
    entry="web.yaml",
    directory="src",
    ports=(ContainerPort(8080),),
)
Running = Callable[[str], AbstractAsyncContextManager[Runtime]]


@asynccontextmanager
async def memory(node: str) -> AsyncIterator[Runtime]:
    async with running_memory_runtime(node) as runtime:
        yield runtime


@asynccontextmanager
async def docker(node: str) -> AsyncIterator[Runtime]:
    async with clean_docker(node) as runtime:
        yield runtime


@asynccontextmanager
async def docker_with_sandboxes(node: str) -> AsyncIterator[Runtime]:
    async with clean_docker(node, sandboxes=1) as runtime:
        yield runtime


@asynccontextmanager
async def wasm(node: str) -> AsyncIterator[Runtime]:
    with tempfile.TemporaryDirectory() as folder:
        async with running_wasm(Path(folder) / node, extract_file) as runtime:
            yield runtime


DOCKER = [pytest.param(way, marks=pytest.mark.docker) for way in (docker, docker_with_sandboxes)]


@pytest.fixture(params=[memory, wasm, *DOCKER], ids=["memory", "wasm", "docker", "docker-with-sandboxes"])
def running(request: pytest.FixtureRequest) -> Running:
    if request.param not in (memory, wasm):
        request.getfixturevalue("base_image")
    return request.param  # type: ignore[no-any-return]


class Stage:
    """A runtime with one archive."""

    def __init__(self, runtime: Runtime, shelf: Shelf) -> None:
        self.runtime = runtime
        descriptor, files = DESCRIPTOR, WEB_FILES
        if isinstance(runtime, WasmRuntime):
            descriptor, files = MODULE, {"m.wasm": wat(HELLO)}
        self.digest = shelf.put(descriptor, files)
        self.source = Source(descriptor=descriptor, digest=self.digest, archive=shelf.here[self.digest])

    async def workload(self, instance: str) -> Workload:
        image = await self.runtime.prepare(self.source)
        return Workload(instance=instance, digest=self.digest, image=image, mem=16, ports=DESCRIPTOR.ports)

    async def start(self, instance: str) -> tuple[str, int]:
        """Where the service answers."""
        seen = await self.runtime.start(await self.workload(instance))
        return upstream_of(seen)


@asynccontextmanager
async def stage(running: Running, tmp_path: Path) -> AsyncIterator[Stage]:
    async with running(os.urandom(20).hex()) as runtime:
        yield Stage(runtime, Shelf(tmp_path))


def upstream_of(seen: RuntimeInstance) -> tuple[str, int]:
    found = seen.upstream(8080)
    assert found is not None
    return found


async def ask(address: tuple[str, int]) -> bytes:
    async def answer() -> bytes:
        try:
            reader, writer = await asyncio.open_connection(*address)
        except OSError:
            return b""
        writer.write(b"GET /index.html HTTP/1.0\r\n\r\n")
        received = await reader.read()
        writer.close()
        return received

    return await until(answer)


async def test_a_prepared_archive_starts_and_answers(running: Running, tmp_path: Path) -> None:
    async with stage(running, tmp_path) as s:
        address = await s.start("one")
        assert b"200 OK" in await ask(address)
        seen = await s.runtime.inspect("one")
        assert seen is not None
        assert (seen.condition, seen.digest) == (Condition.RUNNING, s.digest)
        assert (await s.runtime.gateways(await s.workload("one"))) == tuple(a.gateway for a in seen.attachments)


async def test_what_is_built_is_known_as_built(running: Running, tmp_path: Path) -> None:
    async with stage(running, tmp_path) as s:
        other = "sha256:" + "0" * 64
        assert await s.runtime.built([s.digest, other]) == frozenset()
        assert await s.runtime.image_of(s.digest, None) is None
        image = await s.runtime.prepare(s.source)
        assert await s.runtime.built([s.digest, other]) == {s.digest}
        assert await s.runtime.image_of(s.digest, None) == image
        assert await s.runtime.prepare(s.source) == image


async def test_starting_twice_is_starting_once(running: Running, tmp_path: Path) -> None:
    async with stage(running, tmp_path) as s:
        assert await s.start("one") == await s.start("one")
        assert len(await s.runtime.adopt()) == 1


async def test_a_stopped_instance_stays_and_starts_again(running: Running, tmp_path: Path) -> None:
    async with stage(running, tmp_path) as s:
        await s.start("one")
        await s.runtime.stop("one")
        await s.runtime.stop("one")
        seen = await s.runtime.inspect("one")
        assert seen is not None
        assert seen.condition is Condition.EXITED
        assert b"200 OK" in await ask(await s.start("one"))


async def test_a_paused_instance_is_silent_until_resumed_and_can_be_stopped(running: Running, tmp_path: Path) -> None:
    async with stage(running, tmp_path) as s:
        address = await s.start("one")
        await ask(address)
        await s.runtime.pause("one")
        await s.runtime.pause("one")
        seen = await s.runtime.inspect("one")
        assert seen is not None
        assert seen.condition is Condition.PAUSED
        await s.runtime.resume("one")
        assert b"200 OK" in await ask(address)
        await s.runtime.pause("one")
        await s.runtime.stop("one")
        seen = await s.runtime.inspect("one")
        assert seen is not None
        assert seen.condition is Condition.EXITED


async def test_removing_leaves_nothing_and_may_be_repeated(running: Running, tmp_path: Path) -> None:
    async with stage(running, tmp_path) as s:
        await s.start("one")
        await s.runtime.remove("one")
        await s.runtime.remove("one")
        await s.runtime.stop("one")
        assert await s.runtime.inspect("one") is None
        assert await s.runtime.adopt() == []
        assert await s.runtime.logs("one") == ()


async def test_a_start_that_fails_leaves_nothing(running: Running, tmp_path: Path) -> None:
    async with stage(running, tmp_path) as s:
        workload = Workload(instance="one", digest=s.digest, image="cornerstore/svc:absent", mem=16)
        with pytest.raises(StartFailed) as caught:
            await s.runtime.start(workload)
        assert caught.value.extra["reason"] == IMAGE_GONE
        assert await s.runtime.adopt() == []


async def test_events_begin_with_back_and_tell_of_an_end(running: Running, tmp_path: Path) -> None:
    async with stage(running, tmp_path) as s, AsyncExitStack() as stack:
        await s.start("one")
        events = s.runtime.events()
        stack.push_async_callback(events.aclose)  # type: ignore[attr-defined]
        assert (await anext(events)).kind is EventKind.BACK
        await s.runtime.stop("one")
        event = await asyncio.wait_for(anext(events), 10)
        assert (event.kind, event.instance) == (EventKind.CHANGED, "one")


async def test_another_node_adopts_nothing_of_ours(running: Running, tmp_path: Path) -> None:
    async with stage(running, tmp_path) as s:
        await s.start("one")
        async with running(os.urandom(20).hex()) as other:
            assert await other.adopt() == []
            assert await other.inspect("one") is None
        assert [i.instance for i in await s.runtime.adopt()] == ["one"]
