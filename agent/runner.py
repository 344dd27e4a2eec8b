"""Carries out what the controller asks and what the lifecycle decides.

`agent.lifecycle` decides, `agent.instances` writes it down and reports it, `agent.operations` performs it, and this
module says in which order. Commands run as tasks of their own, so that a lost link or an impatient caller never
leaves one half done.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping

import structlog
from msgspec import Struct

from agent import lifecycle
from agent.instances import Instances, Slot
from agent.lifecycle import Effect
from agent.operations import LOOK_AGAIN_S, Operations
from agent.provision import Archive, Provision, Timings
from agent.runtime import OnProgress, Runtime, Workload, unheard
from agent.workloads import (
    alive_time_of,
    check_labels,
    check_relaxations,
    check_variant,
    environment_of,
    memory_of,
    waits_for_message,
)
from dht.tasks import OwnedTasks
from protocol import link
from protocol.instances import RESTART_S, InstanceReport, PortBinding, Progress, State
from protocol.problems import (
    BadRequest,
    Conflict,
    DeadlineExceeded,
    EngineUnavailable,
    Problem,
)
from protocol.service import HARDENED, Allowed

log = structlog.get_logger(__name__)

_INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class Started(Struct, frozen=True):
    """`warm`: the instance ran already."""

    report: InstanceReport
    timings_ms: dict[str, float] = {}
    warm: bool = False


class _Launch:
    """A first start under way, and who watches it."""

    def __init__(self, command: link.Start) -> None:
        self.command = command
        self.timings = Timings()
        self.watchers: list[OnProgress] = []
        self.task: asyncio.Task[Started] | None = None

    def progress(self, step: Progress) -> None:
        for watcher in self.watchers:
            watcher(step)


class Runner:
    def __init__(
        self,
        instances: Instances,
        operations: Operations,
        provision: Provision,
        tasks: OwnedTasks,
        *,
        labels: Mapping[str, str],
        allowed: Allowed,
        ready_timeout_s: float,
        pause_after_s: float = 0.0,
    ) -> None:
        """`ready_timeout_s`: how long a service that runs may take to be ready. `pause_after_s`: how long it may then
        run unused before it is frozen; 0: for ever. `allowed`: by this machine."""
        self._instances = instances
        self._operations = operations
        self._provision = provision
        self._tasks = tasks
        self._labels = labels
        self._allowed = allowed
        self.region_allows = HARDENED
        """What the controller said last. Nothing more, before one was heard."""
        self._ready_timeout_s = ready_timeout_s
        self._pause_after_s = pause_after_s
        self._launches: dict[str, _Launch] = {}
        self._interrupted: list[Slot] = []
        operations.start_again = self._start_again

    # --- commands ---------------------------------------------------------------------------------------------------

    async def start(self, command: link.Start, on_progress: OnProgress | None = None) -> Started:
        """Start a service and wait until it is ready; with a known instance id, join that start or report it.

        Raises BadRequest, Conflict, NoCapacity, ContentNotFound, Unavailable, InvalidArchive, BuildFailed, StartFailed,
        EngineUnavailable, DeadlineExceeded. After any of them nothing of the instance is left.
        """
        launch = self._launches.get(command.instance)
        slot = self._instances.find(command.instance)
        if slot is not None and slot.entry.digest != command.digest:
            raise Conflict(f"instance {command.instance} runs another service", fix="Use a new instance id.")
        if launch is None:
            if slot is not None:
                return Started(self._instances.report(slot), warm=slot.state is State.RUNNING)
            launch = self._begin(command)
        if on_progress is not None:
            launch.watchers.append(on_progress)
        assert launch.task is not None
        return await asyncio.shield(launch.task)

    async def stop(self, command: link.Stop) -> InstanceReport:
        """Stop, and keep its identity; a first start under way is abandoned. Raises UnknownInstance."""
        slot = self._instances.get(command.instance)
        return await self._command(slot, lifecycle.StopAsked(now=self._instances.now(), reason=command.reason))

    async def remove(self, command: link.Remove) -> InstanceReport:
        """Raises UnknownInstance."""
        slot = self._instances.get(command.instance)
        return await self._command(slot, lifecycle.RemoveAsked(now=self._instances.now(), reason=command.reason))

    async def restart(self, command: link.Restart) -> Started:
        """Start a stopped or failed instance, or stop and start a running one. Its ports stay the same.

        Raises UnknownInstance, Conflict, NoCapacity, StartFailed, EngineUnavailable, DeadlineExceeded.
        """
        slot = self._instances.get(command.instance)
        if slot.state in lifecycle.ENDED:
            await self._reserve(slot, slot.entry.mem)
        effects = self._instances.apply(slot, lifecycle.RestartAsked(now=self._instances.now()))
        if effects:
            slot.seen = None
        return await asyncio.shield(self._tasks.run(self._restart(slot, effects), name=f"restart {slot.id}"))

    async def extend(self, command: link.Extend) -> InstanceReport:
        """Raises UnknownInstance."""
        slot = self._instances.get(command.instance)
        event = lifecycle.Extended(now=self._instances.now(), alive_time=command.alive_time, exact=command.exact)
        self._instances.apply(slot, event)
        return self._instances.report(slot)

    async def keep(self, command: link.Keep) -> InstanceReport:
        """Raises UnknownInstance."""
        slot = self._instances.get(command.instance)
        self._instances.apply(slot, lifecycle.KeepAsked(now=self._instances.now(), keep_s=command.keep_s))
        return self._instances.report(slot)

    async def wake(self, command: link.Wake) -> InstanceReport:
        """Does not wait until it is awake. Raises UnknownInstance."""
        slot = self._instances.get(command.instance)
        self.on_knock(command.instance)
        return self._instances.report(slot)

    async def prepare(self, command: link.Prepare, on_progress: OnProgress) -> dict[str, float]:
        """Fetched, read and built; nothing runs. Milliseconds by phase.

        Raises what `start` raises before anything is started.
        """
        return await asyncio.shield(self._tasks.run(self._prepare(command, on_progress), name="prepare a service"))

    async def log(self, command: link.ReadLog) -> tuple[InstanceReport, tuple[str, ...]]:
        """What the instance wrote last; of one that the engine forgot, what was kept of its end.

        Raises UnknownInstance, EngineUnavailable.
        """
        slot = self._instances.get(command.instance)
        lines = await self._operations.log(slot, command.lines)
        return self._instances.report(slot), lines or slot.entry.instance.log

    # --- what services and the clock say ----------------------------------------------------------------------------

    def on_alive(self, instance: str) -> None:
        slot = self._instances.find(instance)
        if slot is not None:
            slot.used_at = self._instances.now()
            self._instances.apply(slot, lifecycle.AliveReceived(now=slot.used_at))

    def on_traffic(self, instance: str) -> None:
        slot = self._instances.find(instance)
        if slot is not None:
            slot.used_at = self._instances.now()
            self._instances.apply(slot, lifecycle.Traffic(now=slot.used_at))

    def on_knock(self, instance: str) -> None:
        """A client connects or sends. What it says waits in the kernel until a frozen service is awake."""
        slot = self._instances.find(instance)
        if slot is not None and slot.state is State.PAUSED:
            slot.used_at = self._instances.now()
            slot.waking = True
            self._later(slot, self._instances.apply(slot, lifecycle.Woken(now=slot.used_at)))

    async def addresses_of(self, instance: str) -> frozenset[str] | None:
        """The addresses that may speak for the instance. A message may come before its start call has returned."""
        slot = self._instances.find(instance)
        if slot is None:
            return None
        if slot.state is State.STARTING:
            async with slot.lock:
                return slot.addresses
        return slot.addresses

    def tick(self) -> None:
        """Let the time pass for every instance."""
        self._instances.store_pending()
        loop_time = asyncio.get_running_loop().time()
        for slot in self._instances:
            if loop_time >= slot.look_again_at:
                slot.look_again_at = math.inf
                self._tasks.run(self._operations.observe(slot), name=f"look again at {slot.id}")
            now, busy = self._instances.now(), self._operations.proxy.busy(slot.id)
            self._later(
                slot,
                self._instances.apply(slot, lifecycle.Tick(now=now, busy=busy, ready_timeout_s=self._ready_timeout_s)),
            )
            idle_s = slot.idle_s(now)
            if self._pause_after_s and not busy and idle_s is not None and idle_s >= self._pause_after_s:
                self._later(slot, self._instances.apply(slot, lifecycle.Idle(now=now)))

    # --- what the engine says ---------------------------------------------------------------------------------------

    def engine_away(self, runtime: Runtime) -> None:
        for slot in self._of(runtime.name):
            self._later(slot, self._instances.apply(slot, lifecycle.EngineAway(now=self._instances.now())))

    async def relist(self, runtime: Runtime) -> None:
        """Look at every instance of a runtime, and remove containers of this node that nobody knows."""
        found = await runtime.adopt()
        for slot in self._of(runtime.name):
            await self._operations.observe(slot)
        for stranger in found:
            if self._instances.find(stranger.instance) is None:
                log.info("stranger-removed", instance=stranger.instance, runtime=runtime.name)
                await runtime.remove(stranger.instance)

    async def observe_named(self, instance: str) -> None:
        """Observe an instance of which the engine said something; others are no concern of this agent."""
        slot = self._instances.find(instance)
        if slot is not None:
            await self._operations.observe(slot)

    # --- after a restart of the agent -------------------------------------------------------------------------------

    async def restore(self) -> None:
        """Take over the journal: ports are opened again; what never became ready is forgotten, what ran is unknown
        until the engine was looked at."""
        self._instances.restore()
        for slot in self._instances:
            if slot.entry.instance.started_at is None or slot.state is State.REMOVED:
                self._instances.forget(slot)
                continue
            self._instances.apply(slot, lifecycle.Resumed(now=self._instances.now()))
            await self._operations.open_ports(slot)
            if slot.state is State.STARTING:
                self._interrupted.append(slot)
            if slot.entry.runtime not in self._operations.runtimes:
                self._instances.apply(slot, lifecycle.EngineAway(now=self._instances.now()))

    def resume_restarts(self) -> None:
        """Restarts that the end of the agent interrupted are waited for again."""
        interrupted, self._interrupted = self._interrupted, []
        for slot in interrupted:
            if slot.state is State.STARTING:
                self._start_again(slot)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _begin(self, command: link.Start) -> _Launch:
        if not _INSTANCE.fullmatch(command.instance):
            raise BadRequest(
                f"{command.instance[:80]!r} cannot name an instance", fix="Use up to 64 letters, digits, dots, dashes."
            )
        slot = self._instances.add(command.instance, command.digest, command.variant)
        launch = self._launches[command.instance] = _Launch(command)
        launch.task = self._tasks.run(self._launch(slot, launch), name=f"start {slot.id}")
        return launch

    async def _launch(self, slot: Slot, launch: _Launch) -> Started:
        try:
            async with asyncio.timeout(launch.command.deadline_s):
                await self._bring_up(slot, launch)
        except asyncio.CancelledError:
            if slot.state is State.REMOVED:
                raise _abandoned(slot) from None
            raise
        except TimeoutError:
            problem = _too_late(slot, launch.command.deadline_s)
            await self._abandon(slot, problem, discard=True)
            raise problem from None
        except Exception as error:
            await self._abandon(slot, error, discard=True)
            if slot.state is State.REMOVED:
                raise _abandoned(slot) from error
            raise
        finally:
            del self._launches[slot.id]
        log.info("instance-ready", instance=slot.id, digest=slot.entry.digest, **launch.timings.result())
        return Started(self._instances.report(slot), launch.timings.result())

    async def _bring_up(self, slot: Slot, launch: _Launch) -> None:
        command, timings, progress = launch.command, launch.timings, launch.progress
        async with self._provision.archive(command.digest) as archive:
            await self._make_ready(slot, launch, archive)
        await self._operations.open_ports(slot)
        self._instances.apply(slot, lifecycle.Built(now=self._instances.now()))
        progress(Progress("start", "starting the instance"))
        await self._operations.run(slot, timings, progress)
        progress(Progress("ready", "waiting until it answers"))
        with timings.phase("ready"):
            await self._operations.until_ready(slot, progress)

    async def _prepare(self, command: link.Prepare, on_progress: OnProgress) -> dict[str, float]:
        timings = Timings()
        try:
            async with asyncio.timeout(command.deadline_s), self._provision.archive(command.digest) as archive:
                await self._build(command, archive, timings, on_progress)
        except TimeoutError:
            raise DeadlineExceeded(
                f"{command.digest} was not ready after {command.deadline_s:g} s", fix="Try again: what arrived is kept."
            ) from None
        return timings.result()

    async def _build(self, command: link.Prepare, archive: Archive, timings: Timings, on_progress: OnProgress) -> None:
        digest, deadline_s = command.digest, command.deadline_s
        descriptor = await self._provision.descriptor(
            digest, archive, deadline_s=deadline_s, timings=timings, on_progress=on_progress
        )
        check_variant(descriptor, command.variant)
        check_labels(descriptor, self._labels)
        check_relaxations(descriptor, region=self.region_allows, machine=self._allowed)
        await self._provision.image(
            await self._operations.runtime_for(descriptor),
            digest,
            descriptor,
            archive,
            variant=command.variant,
            force_rebuild=False,
            deadline_s=deadline_s,
            timings=timings,
            on_progress=on_progress,
        )

    async def _reserve(self, slot: Slot, mem: int) -> None:
        """What is only kept warm makes room. Raises NoCapacity."""
        for kept in self._instances.in_the_way(slot, mem):
            effects = self._instances.apply(kept, lifecycle.StopAsked(now=self._instances.now(), reason="evicted"))
            await self._operations.perform(kept, effects)
        self._instances.reserve(slot, mem)

    async def _make_ready(self, slot: Slot, launch: _Launch, archive: Archive) -> None:
        """Fetched, read, admitted, built: after this the engine can start it."""
        command, timings, progress = launch.command, launch.timings, launch.progress
        descriptor = await self._provision.descriptor(
            command.digest, archive, deadline_s=command.deadline_s, timings=timings, on_progress=progress
        )
        environment = environment_of(descriptor, command)
        check_labels(descriptor, self._labels)
        check_relaxations(descriptor, region=self.region_allows, machine=self._allowed)
        runtime = await self._operations.runtime_for(descriptor)
        await self._reserve(slot, memory_of(descriptor, command.variant))
        self._instances.update(slot, runtime=runtime.name, service_id=descriptor.id, service_name=descriptor.name)
        self._instances.apply(
            slot,
            lifecycle.Described(
                now=self._instances.now(),
                alive_time=alive_time_of(descriptor, command),
                wait_for_start=waits_for_message(descriptor),
            ),
        )
        image = await self._provision.image(
            runtime,
            command.digest,
            descriptor,
            archive,
            variant=command.variant,
            force_rebuild=command.force_rebuild,
            deadline_s=command.deadline_s,
            timings=timings,
            on_progress=progress,
        )
        await self._provision.keep(command.digest, slot.id)
        self._instances.update(
            slot,
            ports=tuple(PortBinding(p.port, 0, p.protocol, p.description) for p in descriptor.ports),
            workload=Workload(
                instance=slot.id,
                digest=command.digest,
                image=image,
                mem=slot.entry.mem,
                ports=descriptor.ports,
                environment={**environment, "name": slot.id},
                networks=descriptor.networks,
                relaxations=descriptor.relaxations,
            ),
        )

    def _start_again(self, slot: Slot) -> None:
        self._tasks.run(self._restart(slot, (Effect.START,)), name=f"restart {slot.id}")

    async def _restart(self, slot: Slot, effects: tuple[Effect, ...]) -> Started:
        timings = Timings()
        try:
            async with asyncio.timeout(RESTART_S):
                await self._operations.perform(slot, tuple(e for e in effects if e is Effect.STOP))
                if Effect.START in effects:
                    await self._operations.run(slot, timings, unheard)
                with timings.phase("ready"):
                    await self._operations.until_ready(slot)
        except TimeoutError:
            problem = _too_late(slot, RESTART_S)
            await self._abandon(slot, problem)
            raise problem from None
        except Exception as error:
            await self._abandon(slot, error)
            raise
        return Started(self._instances.report(slot), timings.result())

    async def _command(self, slot: Slot, event: lifecycle.StopAsked | lifecycle.RemoveAsked) -> InstanceReport:
        effects = self._instances.apply(slot, event)
        report = self._instances.report(slot)
        launch = self._launches.get(slot.id)
        if launch is not None and launch.task is not None and slot.state is State.REMOVED:
            launch.task.cancel()
            await asyncio.wait({launch.task})
        await asyncio.shield(self._tasks.run(self._operations.perform(slot, effects), name=f"{event.reason} {slot.id}"))
        return report

    def _later(self, slot: Slot, effects: tuple[Effect, ...]) -> None:
        if effects:
            self._tasks.run(self._operations.perform(slot, effects), name=f"effects of {slot.id}")

    async def _abandon(self, slot: Slot, error: Exception, *, discard: bool = False) -> None:
        reason = str(error.extra.get("reason", error.slug)) if isinstance(error, Problem) else type(error).__name__
        lines = error.extra.get("log", ()) if isinstance(error, Problem) else ()
        said = error.detail if isinstance(error, Problem) else str(error)
        tell = log.info if isinstance(error, BadRequest) else log.warning
        service = slot.entry.service_id or slot.entry.digest
        tell("start-failed", instance=slot.id, service=service, reason=reason, detail=said)
        now = self._instances.now()
        event: lifecycle.AnyEvent = lifecycle.WorkFailed(now=now, reason=reason, log=tuple(lines))
        if isinstance(error, EngineUnavailable) and slot.entry.instance.resuming:
            event = lifecycle.EngineAway(now=now)  # it has gone again
            slot.look_again_at = asyncio.get_running_loop().time() + LOOK_AGAIN_S
        effects = self._instances.apply(slot, event)
        # Another task may have seen the end first and be about to remove it: the caller shall find nothing left.
        await self._operations.perform(slot, (Effect.REMOVE,) if discard else effects)

    def _of(self, runtime: str) -> list[Slot]:
        return [slot for slot in self._instances if slot.entry.runtime == runtime]


def _too_late(slot: Slot, limit_s: float) -> DeadlineExceeded:
    instance = slot.entry.instance
    awaited = f": {instance.reason}" if instance.reason else ""
    return DeadlineExceeded(
        f"instance {slot.id} was {slot.state} when its {limit_s:g} s were over{awaited}",
        fix="Read the log; a slow service needs more time: `--wait SECONDS` (`wait_s`).",
        log=list(instance.log),
    )


def _abandoned(slot: Slot) -> Conflict:
    return Conflict(f"instance {slot.id} was {slot.entry.instance.reason} while it was starting")
