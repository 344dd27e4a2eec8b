"""Services as WebAssembly modules in a process beside the node's own: no daemon, no root, no images.

A WAGI module keeps nothing between two requests, so an instance is no more than a listener, a compiled module and a
record on disk. The listener is the node's and outlives a host that dies: the next one serves it again. It ends with the
node; the next start of the node opens one from the record, as if the instance had gone on running. Instances have no
network and so no attachments: they answer where `forwards` says.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import structlog
from msgspec import Struct, structs

from agent.runtime import (
    LOG_LINES,
    Capabilities,
    Condition,
    EventKind,
    OnProgress,
    RuntimeEvent,
    RuntimeInstance,
    Source,
    Workload,
    artifact_of,
)
from agent.wasm.hosting import Hosting
from agent.wasm.modules import ExtractFile, WasmModules, module_name, write_whole
from protocol.instances import Progress
from protocol.problems import EngineUnavailable, Problem, StartFailed

log = structlog.get_logger(__name__)

DEFAULT_TIMEOUT_S = 10.0
BACKLOG = 512
STOPPED = 143
"""Exit code of an instance that was stopped: as of a process that ended by SIGTERM."""
CRASHED = 139
"""Exit code where the host that ran it died: as of a process that ended by SIGSEGV."""
HOST = "127.0.0.1"

_INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class Kept(Struct, frozen=True):
    """What is written of an instance. `status`: its exit code, once it has exited."""

    workload: Workload
    condition: Condition
    status: int = STOPPED


class WasmRuntime:
    name = "wasm"

    def __init__(self, modules: Path, instances: Path, extract: ExtractFile) -> None:
        """Use `running_wasm`. Raises DiskFull."""
        self._hosting = Hosting(self._host_died)
        self._modules = WasmModules(modules, extract, self._check)
        self._folder = instances
        self._kept: dict[str, Kept] = {}
        self._listeners: dict[str, socket.socket] = {}
        """Of those that run or are paused."""
        self._watchers: set[asyncio.Queue[RuntimeEvent]] = set()

    @property
    def host_pid(self) -> int | None:
        """Of the process that runs the modules, if one was needed yet."""
        host = self._hosting.running
        return host.pid if host is not None else None

    async def capabilities(self) -> Capabilities:
        return Capabilities(frozenset({"wasm_module"}), version("wasmtime"))

    async def prepare(
        self, source: Source, *, force_rebuild: bool = False, on_progress: OnProgress | None = None
    ) -> str:
        name = module_name(source.digest, artifact_of(source.descriptor, source.variant))
        if force_rebuild or self._modules.find(name) is None:
            if on_progress is not None:
                on_progress(Progress("build", "compiling the module"))
            self._hosting.begin()  # what the compiler makes is tried in it, and soon runs there
            await self._modules.make(source)
            self._modules.trim({kept.workload.image for kept in self._kept.values()} | {name})
        return name

    async def built(self, digests: Collection[str]) -> frozenset[str]:
        return frozenset(digest for digest in digests if self._modules.find(module_name(digest, None)) is not None)

    async def image_of(self, digest: str, artifact: str | None) -> str | None:
        name = module_name(digest, artifact)
        return name if self._modules.find(name) is not None else None

    async def gateways(self, workload: Workload) -> tuple[str, ...]:
        """None: a module cannot send, so there is nothing to listen for."""
        return ()

    async def start(self, workload: Workload) -> RuntimeInstance:
        if not _INSTANCE.fullmatch(workload.instance):
            raise StartFailed(f"{workload.instance[:80]!r} cannot name an instance", reason="engine-refused", log=[])
        if workload.instance not in self._listeners:
            kept = self._kept.get(workload.instance)
            await self._open(kept.workload if kept is not None else workload)
            try:
                self._keep(workload.instance, Condition.RUNNING)
            except Problem:
                await self._undo(workload.instance, kept)
                raise
        return self._seen(workload.instance)

    async def pause(self, instance: str) -> None:
        if instance in self._listeners:
            await (await self._hosting.host()).pause(instance)
            self._keep(instance, Condition.PAUSED)

    async def resume(self, instance: str) -> None:
        if instance in self._listeners:
            await (await self._hosting.host()).resume(instance)
            self._keep(instance, Condition.RUNNING)

    async def stop(self, instance: str) -> None:
        if instance in self._listeners:
            self._keep(instance, Condition.EXITED)
            await self._close(instance)
            self._tell(RuntimeEvent(EventKind.CHANGED, instance))

    async def remove(self, instance: str) -> None:
        if self._kept.pop(instance, None) is None:
            return
        self._record(instance).unlink(missing_ok=True)
        await self._close(instance)
        self._tell(RuntimeEvent(EventKind.CHANGED, instance))

    async def inspect(self, instance: str) -> RuntimeInstance | None:
        return self._seen(instance) if instance in self._kept else None

    async def adopt(self) -> list[RuntimeInstance]:
        return [self._seen(instance) for instance in self._kept]

    async def events(self) -> AsyncIterator[RuntimeEvent]:
        queue: asyncio.Queue[RuntimeEvent] = asyncio.Queue()
        self._watchers.add(queue)
        try:
            yield RuntimeEvent(EventKind.BACK)
            while True:
                yield await queue.get()
        finally:
            self._watchers.discard(queue)

    async def logs(self, instance: str, lines: int = LOG_LINES) -> tuple[str, ...]:
        return await (await self._hosting.host()).log(instance, lines) if instance in self._listeners else ()

    # --- the node's own life ----------------------------------------------------------------------------------------

    async def restore(self) -> None:
        """Open again what the last node ran. An instance whose module cannot be loaded any more is forgotten."""
        for left in self._folder.glob(".*"):
            left.unlink()
        for path in sorted(self._folder.iterdir()):
            try:
                kept = msgspec.msgpack.decode(path.read_bytes(), type=Kept)
                self._kept[kept.workload.instance] = kept
                if kept.condition is not Condition.EXITED:
                    await self._open(kept.workload)
                if kept.condition is Condition.PAUSED:
                    await self.pause(kept.workload.instance)
            except EngineUnavailable as problem:
                log.error("wasm-instance-not-served", record=path.name, detail=problem.detail)
                self._forsake(path.name)
            except (msgspec.MsgspecError, OSError, Problem) as error:
                log.warning("wasm-instance-lost", record=path.name, error=str(error))
                self._kept.pop(path.name, None)
                path.unlink(missing_ok=True)

    async def __aenter__(self) -> Self:
        await self.restore()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End with the node; records stay."""
        await self._hosting.__aexit__(kind, error, trace)
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()

    # --- inside -----------------------------------------------------------------------------------------------------

    async def _check(self, native: bytes, sha256: str) -> None:
        await (await self._hosting.host()).check(native, sha256)

    async def _open(self, workload: Workload) -> None:
        listener = _listener()
        try:
            await self._serve(workload, listener)
        except BaseException:
            listener.close()
            raise
        self._listeners[workload.instance] = listener
        self._kept[workload.instance] = Kept(workload, Condition.RUNNING)

    async def _serve(self, workload: Workload, listener: socket.socket) -> None:
        self._hosting.begin()  # while the module is read
        native, compiled = await self._modules.load(workload.image)
        await (await self._hosting.host()).open(
            workload.instance,
            listener,
            native,
            sha256=compiled.sha256,
            mem_mb=workload.mem,
            fuel=compiled.fuel,
            timeout_s=DEFAULT_TIMEOUT_S if compiled.timeout_s is None else compiled.timeout_s,
            variables=workload.environment,
        )

    async def _close(self, instance: str) -> None:
        """A host that is gone serves it no more."""
        listener = self._listeners.pop(instance, None)
        if listener is not None:
            listener.close()
            if (host := self._hosting.running) is not None:
                with contextlib.suppress(EngineUnavailable):  # it is gone, and what it served with it
                    await host.close(instance)

    async def _host_died(self) -> None:
        """Serve again what the host served. What cannot be is over."""
        for instance, listener in list(self._listeners.items()):
            kept = self._kept[instance]
            try:
                await self._serve(kept.workload, listener)
                if kept.condition is Condition.PAUSED:
                    await self.pause(instance)
            except Problem as problem:
                log.error("wasm-instance-lost", instance=instance, detail=problem.detail)
                self._forsake(instance)
                self._tell(RuntimeEvent(EventKind.CHANGED, instance))

    def _forsake(self, instance: str) -> None:
        """It does not run any more. What is on disk may say that it did: the next node tries again."""
        listener = self._listeners.pop(instance, None)
        if listener is not None:
            listener.close()
        self._kept[instance] = structs.replace(self._kept[instance], condition=Condition.EXITED, status=CRASHED)

    async def _undo(self, instance: str, kept: Kept | None) -> None:
        """After a start that could not be written down."""
        await self._close(instance)
        if kept is not None:
            self._kept[instance] = kept
        else:
            del self._kept[instance]

    def _keep(self, instance: str, condition: Condition) -> None:
        kept = self._kept[instance] = structs.replace(self._kept[instance], condition=condition)
        write_whole(self._record(instance), msgspec.msgpack.encode(kept))

    def _seen(self, instance: str) -> RuntimeInstance:
        kept, listener = self._kept[instance], self._listeners.get(instance)
        ports = kept.workload.ports if listener is not None else ()
        return RuntimeInstance(
            instance=instance,
            digest=kept.workload.digest,
            condition=kept.condition,
            forwards={port.port: listener.getsockname() for port in ports if listener is not None},
            exit_code=kept.status if kept.condition is Condition.EXITED else None,
        )

    def _record(self, instance: str) -> Path:
        return self._folder / instance

    def _tell(self, event: RuntimeEvent) -> None:
        for queue in self._watchers:
            queue.put_nowait(event)


@asynccontextmanager
async def running_wasm(folder: Path, extract: ExtractFile) -> AsyncIterator[WasmRuntime]:
    """The runtime, with everything that it keeps below `folder`. Raises DiskFull."""
    instances = folder / "instances"
    instances.mkdir(mode=0o700, parents=True, exist_ok=True)
    async with WasmRuntime(folder / "modules", instances, extract) as runtime:
        yield runtime


def _listener() -> socket.socket:
    """Raises StartFailed."""
    try:
        return socket.create_server((HOST, 0), backlog=BACKLOG)
    except OSError as error:
        raise StartFailed(
            f"the instance cannot listen: {error.strerror}",
            fix="See that the node may open more files (ulimit -n).",
            reason="engine-refused",
            log=[],
        ) from error
