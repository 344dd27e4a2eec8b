"""The engine work for one instance: run it, wait for it, look at it, perform the lifecycle's effects, keep its ports.

Every engine call for an instance happens under its slot's lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog
from msgspec import structs

from agent import lifecycle
from agent.alive import AliveEndpoint
from agent.instances import Instances, Slot
from agent.lifecycle import Effect
from agent.provision import Provision, Timings
from agent.proxy import PortProxy, free_udp_port
from agent.readiness import Pace, answers
from agent.runtime import IMAGE_GONE, PORT_TAKEN, Condition, Publication, Runtime
from agent.workloads import awaited, not_started, probed_port
from protocol.causes import Cause
from protocol.instances import OnProgress, PortBinding, Progress, State
from protocol.problems import EngineUnavailable, NoCapacity, PortTaken, Problem, StartFailed
from protocol.service import ServiceDescriptor

log = structlog.get_logger(__name__)


LOOK_AGAIN_S = 1.0
"""An engine that did not say what became of an instance is asked again."""

REBUILD_S = 100.0
"""For fetching an archive whose image somebody deleted: less than a restart has in all."""


class Operations:
    """`proxy` and `alive` are given once they run: both call back into the runner. `start_again` is the runner's, too:
    an instance that its engine took along is started, and waited for."""

    proxy: PortProxy
    alive: AliveEndpoint
    start_again: Callable[[Slot], None]

    def __init__(
        self, instances: Instances, runtimes: Sequence[Runtime], provision: Provision, *, concurrent_starts: int
    ) -> None:
        self._instances = instances
        self.runtimes = {runtime.name: runtime for runtime in runtimes}
        self._provision = provision
        self._starts = asyncio.Semaphore(concurrent_starts)

    async def runtime_for(self, descriptor: ServiceDescriptor) -> Runtime:
        """The first runtime that runs this kind. Raises NoCapacity, or EngineUnavailable if it is only away."""
        away: EngineUnavailable | None = None
        for runtime in self.runtimes.values():
            try:
                if descriptor.kind in (await runtime.capabilities()).kinds:
                    return runtime
            except EngineUnavailable as problem:
                away = problem
        if away is not None:
            raise away
        raise NoCapacity(
            f"no runtime of this agent runs a {descriptor.kind}",
            fix="Install a container engine on this machine.",
            cause=Cause.RUNTIME,
        )

    async def run(self, slot: Slot, timings: Timings, on_progress: OnProgress) -> None:
        """Have the engine start it. An image that somebody deleted and a port that somebody took are made good, once.

        Raises StartFailed, EngineUnavailable, and where the image is made again what `Provision.image` raises.
        """
        remedies = {IMAGE_GONE: self._make_image, PORT_TAKEN: self._publish_elsewhere}
        while True:
            try:
                with timings.phase("start"):
                    return await self._run(slot)
            except StartFailed as problem:
                remedy = remedies.pop(str(problem.extra.get("reason")), None)
                if remedy is None:
                    raise
                log.warning("start-made-good", instance=slot.id, detail=problem.detail)
                await remedy(slot, timings, on_progress)

    async def _run(self, slot: Slot) -> None:
        """The agent listens for alive messages first."""
        runtime, workload = self.runtimes[slot.entry.runtime], slot.entry.workload
        assert workload is not None
        async with self._starts, slot.lock:
            if slot.state is not State.STARTING:
                return
            for gateway in await runtime.gateways(workload):
                await self.alive.listen_on(gateway)
            slot.seen = await runtime.start(workload)

    async def _make_image(self, slot: Slot, timings: Timings, on_progress: OnProgress) -> None:
        """Of its archive, as for the first start."""
        entry, runtime = slot.entry, self.runtimes[slot.entry.runtime]
        reason = "its image was deleted and is made again"
        self._instances.apply(slot, lifecycle.Awaiting(now=self._instances.now(), reason=reason))
        async with self._provision.archive(entry.digest) as archive:
            descriptor = await self._provision.descriptor(
                entry.digest, archive, deadline_s=REBUILD_S, timings=timings, on_progress=on_progress
            )
            image = await self._provision.image(
                runtime,
                entry.digest,
                descriptor,
                archive,
                variant=entry.variant,
                force_rebuild=False,
                deadline_s=REBUILD_S,
                timings=timings,
                on_progress=on_progress,
            )
        if slot.state is State.STARTING and slot.entry.workload is not None:  # nobody stopped or removed it meanwhile
            self._instances.update(slot, workload=structs.replace(slot.entry.workload, image=image))
            await self._provision.keep(entry.digest, slot.id)

    async def _publish_elsewhere(self, slot: Slot, _timings: Timings, _on_progress: OnProgress) -> None:
        """The ports that the engine publishes get other numbers; a container cannot change them: it is made anew."""
        async with slot.lock:
            await self.runtimes[slot.entry.runtime].remove(slot.id)
        if slot.state is not State.STARTING:
            return
        free = [port if port.protocol == "tcp" else structs.replace(port, port=0) for port in slot.entry.ports]
        self._instances.update(slot, ports=tuple(free))
        await self.open_ports(slot)
        self._instances.apply(slot, lifecycle.PortMoved(now=self._instances.now()))

    async def until_ready(self, slot: Slot, on_progress: OnProgress | None = None) -> None:
        """Probe the container's own address (a published port answers before the service does), and look at the engine
        now and then, until the lifecycle says that it runs or not."""
        port = probed_port(slot.entry.ports)
        pace = Pace()
        while slot.state is State.STARTING:
            slot.changed.clear()
            upstream = slot.upstream(port) if port is not None else None
            if not slot.entry.instance.wait_for_start and (port is None or (upstream and await answers(*upstream))):
                self._instances.apply(slot, lifecycle.Answered(now=self._instances.now()))
            elif pace.look_due():
                await self.observe(slot)
                if pace.tell_due():
                    await self._tell_what_is_awaited(slot, on_progress)
            else:
                await pace.wait(slot.changed)
        instance = slot.entry.instance
        if instance.state is not State.RUNNING:
            raise not_started(instance, slot.entry.ports)

    async def _tell_what_is_awaited(self, slot: Slot, on_progress: OnProgress | None) -> None:
        try:
            lines = await self.runtimes[slot.entry.runtime].logs(slot.id)
        except EngineUnavailable as problem:
            log.debug("log-not-read", instance=slot.id, detail=problem.detail)
            return
        reason = awaited(slot.entry.instance, slot.entry.ports)
        self._instances.apply(slot, lifecycle.Awaiting(now=self._instances.now(), reason=reason, log=lines))
        if on_progress is not None:
            on_progress(Progress("ready", reason))

    async def log(self, slot: Slot, lines: int) -> tuple[str, ...]:
        """The last lines that the engine has of it. Raises EngineUnavailable."""
        runtime = self.runtimes.get(slot.entry.runtime)
        return () if runtime is None else await runtime.logs(slot.id, lines)

    async def observe(self, slot: Slot) -> None:
        """Inspect one instance and let the lifecycle judge."""
        runtime = self.runtimes.get(slot.entry.runtime)
        if runtime is None or slot.state in lifecycle.UNBORN:
            return
        async with slot.lock:
            try:
                effects = await self._look(slot, runtime)
            except EngineUnavailable as problem:
                log.debug("observe-failed", instance=slot.id, detail=problem.detail)
                slot.look_again_at = asyncio.get_running_loop().time() + LOOK_AGAIN_S
                return
        for attachment in slot.seen.attachments if slot.seen is not None else ():
            await self.alive.listen_on(attachment.gateway)
        await self.perform(slot, effects)

    async def _look(self, slot: Slot, runtime: Runtime) -> tuple[Effect, ...]:
        """Once more whenever the state changed during the inspection: what it showed is of before. The same holds
        while a start or a waking was decided and the engine not yet asked."""
        while not slot.waking and (slot.state is not State.STARTING or slot.seen is not None):
            before = slot.entry.instance
            seen = await runtime.inspect(slot.id)
            ended = seen is not None and seen.condition is Condition.EXITED
            lines = await runtime.logs(slot.id) if ended and slot.state not in lifecycle.ENDED else ()
            if (slot.state, slot.entry.instance.since) != (before.state, before.since):
                continue
            slot.seen = seen
            event = lifecycle.Seen(
                now=self._instances.now(),
                condition=seen.condition if seen is not None else Condition.GONE,
                exit_code=seen.exit_code if seen is not None else None,
                out_of_memory=seen is not None and seen.out_of_memory,
                log=lines,
            )
            effects = self._instances.apply(slot, event)
            if Effect.START in effects:
                slot.seen = None
            return effects
        return ()

    async def perform(self, slot: Slot, effects: tuple[Effect, ...]) -> None:
        """Effects on the engine. One that fails is made good when the engine is next listed."""
        for effect in effects:
            async with slot.lock:
                try:
                    await self._perform_one(slot, effect)
                except Problem as problem:
                    log.warning("effect-failed", instance=slot.id, effect=effect, detail=problem.detail)

    async def _perform_one(self, slot: Slot, effect: Effect) -> None:
        runtime = self.runtimes.get(slot.entry.runtime)
        if effect is Effect.STOP and runtime is not None:
            await self.proxy.cut(slot.id)
            await runtime.stop(slot.id)
        elif effect is Effect.PAUSE and runtime is not None:
            if slot.state is State.PAUSED:  # nobody woke it meanwhile
                await runtime.pause(slot.id)
        elif effect is Effect.START:
            self.start_again(slot)
        elif effect is Effect.RESUME:
            slot.waking = False
            if runtime is not None:
                await runtime.resume(slot.id)
        elif effect is Effect.REMOVE:
            await self.proxy.close(slot.id)
            self._instances.forget(slot)
            await self._provision.release(slot.entry.digest, slot.id)
            if runtime is not None:
                await runtime.remove(slot.id)

    async def open_ports(self, slot: Slot) -> None:
        """Give each TCP port its proxy and each other port a number on the host; the numbers are kept for life."""
        bindings, published = [], []
        for wanted in slot.entry.ports:
            if wanted.protocol == "tcp":
                port = await self._open_proxy(slot, wanted)
            else:
                port = wanted.port or free_udp_port(self._instances.host)
                published.append(Publication(wanted.container_port, wanted.protocol, self._instances.host, port))
            bindings.append(PortBinding(wanted.container_port, port, wanted.protocol, wanted.description))
        moved = any(old.port not in (0, new.port) for old, new in zip(slot.entry.ports, bindings, strict=True))
        self._instances.update(slot, ports=tuple(bindings))
        if moved:
            self._instances.apply(slot, lifecycle.PortMoved(now=self._instances.now()))
        if published and slot.entry.workload is not None:
            workload = structs.replace(slot.entry.workload, published=tuple(published))
            self._instances.update(slot, workload=workload)

    async def _open_proxy(self, slot: Slot, wanted: PortBinding) -> int:
        def upstream() -> tuple[str, int] | None:
            return slot.upstream(wanted.container_port)

        try:
            return await self.proxy.open(slot.id, wanted.container_port, upstream, port=wanted.port)
        except PortTaken as problem:
            if not wanted.port:
                raise
            log.warning("port-moved", instance=slot.id, port=wanted.port, detail=problem.detail)
            return await self.proxy.open(slot.id, wanted.container_port, upstream)
