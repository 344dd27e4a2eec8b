"""Services as WebAssembly modules inside the node's own process: no daemon, no root, no images.

A WAGI module keeps nothing between two requests, so an instance is no more than a listener, a compiled module and a
record on disk. The listener ends with the node; the next start of the node opens it again from the record, as if it
had gone on running. Instances have no network and so no attachments: they answer where `forwards` says.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

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
from agent.wasm_modules import ExtractFile, WasmModules, module_name, write_whole
from agent.wasm_service import HOST, WasmService, open_service
from protocol.instances import Progress
from protocol.problems import Problem, StartFailed

log = structlog.get_logger(__name__)

DEFAULT_TIMEOUT_S = 10.0
STOPPED = 143
"""Exit code of an instance that was stopped: as of a process that ended by SIGTERM."""

_INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class Kept(Struct, frozen=True):
    """What is written of an instance."""

    workload: Workload
    condition: Condition


class WasmRuntime:
    name = "wasm"

    def __init__(self, modules: WasmModules, instances: Path) -> None:
        self._modules = modules
        self._folder = instances
        self._kept: dict[str, Kept] = {}
        self._services: dict[str, WasmService] = {}
        self._listeners: set[asyncio.Queue[RuntimeEvent]] = set()

    async def capabilities(self) -> Capabilities:
        return Capabilities(frozenset({"wasm_module"}), version("wasmtime"))

    async def prepare(
        self, source: Source, *, force_rebuild: bool = False, on_progress: OnProgress | None = None
    ) -> str:
        name = module_name(source.digest, artifact_of(source.descriptor, source.variant))
        if force_rebuild or self._modules.find(name) is None:
            if on_progress is not None:
                on_progress(Progress("build", "compiling the module"))
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
        if workload.instance not in self._services:
            kept = self._kept.get(workload.instance)
            await self._open(kept.workload if kept is not None else workload)
            try:
                self._keep(workload.instance, Condition.RUNNING)
            except Problem:
                await self._undo(workload.instance, kept)
                raise
        return self._seen(workload.instance)

    async def pause(self, instance: str) -> None:
        if instance in self._services:
            self._services[instance].pause()
            self._keep(instance, Condition.PAUSED)

    async def resume(self, instance: str) -> None:
        if instance in self._services:
            self._services[instance].resume()
            self._keep(instance, Condition.RUNNING)

    async def stop(self, instance: str) -> None:
        service = self._services.pop(instance, None)
        if service is not None:
            self._keep(instance, Condition.EXITED)
            await service.close()
            self._tell(RuntimeEvent(EventKind.CHANGED, instance))

    async def remove(self, instance: str) -> None:
        service = self._services.pop(instance, None)
        if self._kept.pop(instance, None) is None:
            return
        self._record(instance).unlink(missing_ok=True)
        if service is not None:
            await service.close()
        self._tell(RuntimeEvent(EventKind.CHANGED, instance))

    async def inspect(self, instance: str) -> RuntimeInstance | None:
        return self._seen(instance) if instance in self._kept else None

    async def adopt(self) -> list[RuntimeInstance]:
        return [self._seen(instance) for instance in self._kept]

    async def events(self) -> AsyncIterator[RuntimeEvent]:
        queue: asyncio.Queue[RuntimeEvent] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            yield RuntimeEvent(EventKind.BACK)
            while True:
                yield await queue.get()
        finally:
            self._listeners.discard(queue)

    async def logs(self, instance: str, lines: int = LOG_LINES) -> tuple[str, ...]:
        service = self._services.get(instance)
        return service.log[-lines:] if service is not None else ()

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
            except (msgspec.MsgspecError, OSError, Problem) as error:
                log.warning("wasm-instance-lost", record=path.name, error=str(error))
                self._kept.pop(path.name, None)
                path.unlink(missing_ok=True)

    async def close(self) -> None:
        """End with the node; records stay."""
        services = tuple(self._services.values())
        self._services.clear()
        await asyncio.gather(*(service.close() for service in services))

    # --- inside -----------------------------------------------------------------------------------------------------

    async def _open(self, workload: Workload) -> None:
        program, compiled = await self._modules.load(workload.image)
        self._services[workload.instance] = await open_service(
            program,
            mem_mb=workload.mem,
            fuel=compiled.fuel,
            timeout_s=DEFAULT_TIMEOUT_S if compiled.timeout_s is None else compiled.timeout_s,
            variables=workload.environment,
        )
        self._kept[workload.instance] = Kept(workload, Condition.RUNNING)

    async def _undo(self, instance: str, kept: Kept | None) -> None:
        """After a start that could not be written down."""
        await self._services.pop(instance).close()
        if kept is not None:
            self._kept[instance] = kept
        else:
            del self._kept[instance]

    def _keep(self, instance: str, condition: Condition) -> None:
        kept = self._kept[instance] = structs.replace(self._kept[instance], condition=condition)
        write_whole(self._record(instance), msgspec.msgpack.encode(kept))

    def _seen(self, instance: str) -> RuntimeInstance:
        kept, service = self._kept[instance], self._services.get(instance)
        ports = kept.workload.ports if service is not None else ()
        return RuntimeInstance(
            instance=instance,
            digest=kept.workload.digest,
            condition=kept.condition,
            forwards={port.port: (HOST, service.port) for port in ports if service is not None},
            exit_code=STOPPED if kept.condition is Condition.EXITED else None,
        )

    def _record(self, instance: str) -> Path:
        return self._folder / instance

    def _tell(self, event: RuntimeEvent) -> None:
        for queue in self._listeners:
            queue.put_nowait(event)


@asynccontextmanager
async def running_wasm(folder: Path, extract: ExtractFile) -> AsyncIterator[WasmRuntime]:
    """The runtime, with everything that it keeps below `folder`. Raises DiskFull."""
    modules = WasmModules(folder / "modules", extract)
    instances = folder / "instances"
    instances.mkdir(mode=0o700, exist_ok=True)
    runtime = WasmRuntime(modules, instances)
    try:
        await runtime.restore()
        yield runtime
    finally:
        await runtime.close()
