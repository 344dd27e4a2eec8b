"""A runtime inside the process: every instance is a small TCP server on a loopback address of its own.

It ships with the product, so that everything above a runtime can be tested and shown without an engine. It keeps the
guarantees of `agent.runtime` and passes the same suite as Docker. Like an engine it outlives the agents that use it.
To an HTTP request it answers 200 and its instance id; any other bytes it sends back.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import deque
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import NoReturn

from msgspec import Struct, structs

from agent.runtime import (
    IMAGE_GONE,
    LOG_LINES,
    Attachment,
    Capabilities,
    Condition,
    EventKind,
    RuntimeEvent,
    RuntimeInstance,
    Source,
    Workload,
    artifact_of,
)
from protocol.instances import OnProgress, Progress
from protocol.problems import BuildFailed, EngineUnavailable, Problem, StartFailed
from protocol.service import Kind

GATEWAY = "127.0.0.1"
ALL_KINDS: frozenset[Kind] = frozenset({"docker_container", "wasm_module"})


class Behaviour(Struct, kw_only=True):
    """Knobs, changed at any time. Latencies in s, drawn around the mean; `fails` holds, per call, the problems that its
    next calls raise. `deaf`: what is started from now on listens nowhere."""

    build_s: float = 0.0
    start_s: float = 0.0
    deaf: bool = False
    fails: dict[str, deque[Problem]] = {}


class _Container:
    def __init__(self, workload: Workload, address: str) -> None:
        self.workload = workload
        self.address = address
        self.condition = Condition.EXITED
        self.exit_code: int | None = None
        self.out_of_memory = False
        self.log: deque[str] = deque(maxlen=1000)
        self.servers: list[asyncio.Server] = []
        self.connections: set[asyncio.StreamWriter] = set()
        self.awake = asyncio.Event()

    async def listen(self) -> None:
        for port in self.workload.ports:
            if port.protocol == "tcp":
                self.servers.append(await asyncio.start_server(self._serve, self.address, port.port))

    async def end(self, condition: Condition, exit_code: int | None, *, out_of_memory: bool = False) -> None:
        self.condition, self.exit_code, self.out_of_memory = condition, exit_code, out_of_memory
        self.awake.set()
        for server in self.servers:
            server.close()
        for writer in tuple(self.connections):
            writer.transport.abort()
        self.servers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(writer)
        try:
            while data := await reader.read(64 << 10):
                await self.awake.wait()
                if b" HTTP/1." in data.split(b"\r\n", 1)[0]:
                    body = self.workload.instance.encode()
                    writer.write(
                        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
                    )
                    break
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            self.log.append("a connection was reset")
        finally:
            self.connections.discard(writer)
            writer.close()


class MemoryRuntime:
    """`crash`, `go_away`, `shut_down`, `come_back` and `prune` play the engine's bad moments; `behaviour` the rest."""

    def __init__(self, node: str, *, name: str = "memory", kinds: frozenset[Kind] = ALL_KINDS) -> None:
        self._node = node
        self._name = name
        self._kinds = kinds
        self._containers: dict[str, _Container] = {}
        self._images: set[tuple[str, str | None]] = set()
        self._listeners: set[asyncio.Queue[RuntimeEvent]] = set()
        self._away = False
        self._next_address = 0
        self.behaviour = Behaviour()
        self._random = random.Random(0)  # noqa: S311 - repeatable latencies, not a secret
        self.builds = 0

    @property
    def name(self) -> str:
        return self._name

    async def capabilities(self) -> Capabilities:
        self._check("capabilities")
        return Capabilities(self._kinds, "1")

    async def prepare(
        self, source: Source, *, force_rebuild: bool = False, on_progress: OnProgress | None = None
    ) -> str:
        self._check("prepare")
        key = (source.digest, artifact_of(source.descriptor, source.variant))
        if key not in self._images or force_rebuild:
            if not source.archive.exists():
                raise BuildFailed("the archive is not there", log=[])
            await self._wait(self.behaviour.build_s)
            self._check("build")
            self.builds += 1
            if on_progress is not None:
                on_progress(Progress("build", "made in memory", 1, 1))
            self._images.add(key)
        return _image(*key)

    async def built(self, digests: Collection[str]) -> frozenset[str]:
        self._check("built")
        return frozenset(digest for digest in digests if (digest, None) in self._images)

    async def image_of(self, digest: str, artifact: str | None) -> str | None:
        self._check("image_of")
        return _image(digest, artifact) if (digest, artifact) in self._images else None

    async def gateways(self, workload: Workload) -> tuple[str, ...]:
        self._check("gateways")
        return (GATEWAY,)

    async def start(self, workload: Workload) -> RuntimeInstance:
        self._check("start")
        await self._wait(self.behaviour.start_s)
        if workload.image not in {_image(*key) for key in self._images}:
            raise StartFailed(f"there is no image {workload.image}", reason=IMAGE_GONE, log=[])
        container = self._containers.get(workload.instance)
        if container is None:
            container = self._containers[workload.instance] = _Container(workload, self._new_address())
        if container.condition is Condition.EXITED:
            if not self.behaviour.deaf:
                await container.listen()
            container.condition, container.exit_code, container.out_of_memory = Condition.RUNNING, None, False
            container.awake.set()
            container.log.append("started")
        return _seen(container)

    async def pause(self, instance: str) -> None:
        self._check("pause")
        self._freeze(instance, Condition.RUNNING, Condition.PAUSED)

    async def resume(self, instance: str) -> None:
        self._check("resume")
        self._freeze(instance, Condition.PAUSED, Condition.RUNNING)

    async def stop(self, instance: str) -> None:
        self._check("stop")
        container = self._containers.get(instance)
        if container is not None and container.condition is not Condition.EXITED:
            await container.end(Condition.EXITED, 143)
            self._tell(RuntimeEvent(EventKind.CHANGED, instance))

    async def remove(self, instance: str) -> None:
        self._check("remove")
        container = self._containers.pop(instance, None)
        if container is not None:
            await container.end(Condition.GONE, None)
            self._tell(RuntimeEvent(EventKind.CHANGED, instance))

    async def inspect(self, instance: str) -> RuntimeInstance | None:
        self._check("inspect")
        container = self._containers.get(instance)
        return _seen(container) if container is not None else None

    async def adopt(self) -> list[RuntimeInstance]:
        self._check("adopt")
        return [_seen(container) for container in self._containers.values()]

    async def events(self) -> AsyncIterator[RuntimeEvent]:
        queue: asyncio.Queue[RuntimeEvent] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            yield RuntimeEvent(EventKind.AWAY if self._away else EventKind.BACK)
            while True:
                yield await queue.get()
        finally:
            self._listeners.discard(queue)

    async def logs(self, instance: str, lines: int = LOG_LINES) -> tuple[str, ...]:
        self._check("logs")
        container = self._containers.get(instance)
        return tuple(container.log)[-lines:] if container is not None else ()

    async def crash(self, instance: str, exit_code: int = 1, *, out_of_memory: bool = False) -> None:
        """The instance ends by itself."""
        container = self._containers[instance]
        container.log.append(f"ends with {exit_code}")
        await container.end(Condition.EXITED, exit_code, out_of_memory=out_of_memory)
        self._tell(RuntimeEvent(EventKind.CHANGED, instance))

    def go_away(self) -> None:
        """The engine stops answering; instances run on."""
        self._away = True
        self._tell(RuntimeEvent(EventKind.AWAY))

    async def shut_down(self, exit_code: int = 143) -> None:
        """The engine ends, and what runs with it; nobody hears of that before it is back."""
        self._away = True
        for container in self._containers.values():
            if container.condition is not Condition.EXITED:
                await container.end(Condition.EXITED, exit_code)
        self._tell(RuntimeEvent(EventKind.AWAY))

    def come_back(self) -> None:
        self._away = False
        self._tell(RuntimeEvent(EventKind.BACK))

    def prune(self) -> None:
        """Somebody cleans up behind our back: what does not run goes, and the images that only it had."""
        for instance, container in tuple(self._containers.items()):
            if container.condition is Condition.EXITED:
                del self._containers[instance]
                self._tell(RuntimeEvent(EventKind.CHANGED, instance))
        used = {container.workload.image for container in self._containers.values()}
        self._images = {key for key in self._images if _image(*key) in used}

    def fail_next(self, call: str, problem: Problem) -> None:
        """The next `call` (a method's name, or `build`) raises `problem`; further ones queue up behind it."""
        fails = self.behaviour.fails
        fails.setdefault(call, deque()).append(problem)

    async def close(self) -> None:
        for container in self._containers.values():
            await container.end(Condition.GONE, None)
        self._containers.clear()

    def _check(self, call: str) -> None:
        if self._away:
            self._raise_away()
        waiting = self.behaviour.fails.get(call)
        if waiting:
            raise waiting.popleft()

    def _raise_away(self) -> NoReturn:
        raise EngineUnavailable("the in-memory engine is away", fix="Call come_back().")

    async def _wait(self, mean_s: float) -> None:
        if mean_s:
            await asyncio.sleep(mean_s * self._random.uniform(0.8, 1.2))

    def _freeze(self, instance: str, old: Condition, new: Condition) -> None:
        container = self._containers.get(instance)
        if container is not None and container.condition is old:
            container.condition = new
            (container.awake.set if new is Condition.RUNNING else container.awake.clear)()
            self._tell(RuntimeEvent(EventKind.CHANGED, instance))

    def _new_address(self) -> str:
        """127.x.y.z, unlikely to meet another runtime's on this machine: x comes from the node's id, y from the
        process's."""
        self._next_address += 1
        block = 64 + int(self._node[:2], 16) % 128
        hundreds, ones = divmod(self._next_address, 250)
        return f"127.{block}.{(os.getpid() + hundreds) % 250}.{ones + 2}"

    def _tell(self, event: RuntimeEvent) -> None:
        for queue in self._listeners:
            queue.put_nowait(event)


@asynccontextmanager
async def running_memory_runtime(
    node: str, *, name: str = "memory", kinds: frozenset[Kind] = ALL_KINDS
) -> AsyncIterator[MemoryRuntime]:
    runtime = MemoryRuntime(node, name=name, kinds=kinds)
    try:
        yield runtime
    finally:
        await runtime.close()


def _image(digest: str, artifact: str | None) -> str:
    return digest if artifact is None else f"{digest}#{artifact}"


def _seen(container: _Container) -> RuntimeInstance:
    up = container.condition is not Condition.EXITED
    found = RuntimeInstance(
        instance=container.workload.instance,
        digest=container.workload.digest,
        condition=container.condition,
        exit_code=container.exit_code,
        out_of_memory=container.out_of_memory,
    )
    return structs.replace(found, attachments=(Attachment("memory", container.address, GATEWAY),)) if up else found
