"""Bringing a service up for whoever waits for it: on an agent of the region, else in another one.

It belongs to the flight, not to who asked first: it goes on while anybody waits, and for a while after.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine
from typing import Any

import msgspec
import structlog
from msgspec import Struct

from protocol.causes import Cause, cause_of
from protocol.instances import InstanceReport, Progress, State
from protocol.link import Done, Start
from protocol.problems import DeadlineExceeded, NoCapacity, Problem, StartFailed, Unavailable
from protocol.tracing import current_header
from region_controller.agents import Warmth
from region_controller.endings import failed_start
from region_controller.flights import Flight
from region_controller.leases import Held
from region_controller.passing_on import HOST_CANNOT, PassingOn, Remote
from region_controller.placement import Nobody, Placement, choose
from region_controller.refusals import Refusal
from region_controller.region import Region
from region_controller.start_line import Room, StartLine
from region_controller.wanted import Wanted, loop_time, since

log = structlog.get_logger(__name__)

START_S = 600.0
"""How long a start may go on after its last waiter left: an image may have to be built."""
LOOK_S = 1.0
"""Between two looks at a start for which nobody waits any more."""
AGENTS_BACK_S = 10.0
"""After a restart of the controller: how long an agent is waited for that had begun what is asked for."""
LOOK_AGAIN_S = 0.05


class Local(Struct, frozen=True):
    """An instance of our own agents, ready. `warm`: it ran already."""

    choice: Placement
    node: str
    report: InstanceReport
    timings_ms: dict[str, float] = {}
    warm: bool = False


class BringingUp:
    def __init__(self, region: Region, passing_on: PassingOn) -> None:
        self._region = region
        self._passing_on = passing_on
        self.line = StartLine(
            places=region.config.max_queued_starts, longest_s=region.config.queue_wait_s, slots=self._slots
        )

    def _slots(self) -> int:
        agents, _, _ = self._region.members.capacity()
        return max(1, agents) * self._region.config.starts_per_agent

    def choose(self, wanted: Wanted, refused: dict[str, Refusal] | None = None) -> Placement | Nobody:
        """Among our own agents. `refused`: those that were asked already, and could not."""
        return choose(wanted.need(), self._region.agents(), self._region.clock(), refused)

    async def start(self, wanted: Wanted, flight: Flight[Local | Remote]) -> Local | Remote:
        progress, arrived = flight.progress, loop_time()
        reasons: dict[str, Refusal] = {}
        if (resumed := await self._resumed(wanted, flight)) is not None:
            return resumed
        while True:
            choice, no_room = self.choose(wanted, reasons), None
            if isinstance(choice, Nobody):
                room_s = self._room_s(choice, wanted)
                try:
                    return await self._passing_on.hand_off(wanted, choice, progress, room_s)
                except NoCapacity as problem:
                    if wanted.route.origin or room_s is None or room_s > self.line.patience_s(flight, arrived):
                        raise
                    no_room = problem
            elif choice.instance and (found := self._region.members.find(choice.instance)):
                return Local(choice, *found, warm=True)
            elif (
                choice.warmth >= Warmth.CACHED
                and not reasons
                and (remote := await self._passing_on.to_warm(wanted, choice, progress)) is not None
            ):
                return remote
            client = wanted.route.origin or wanted.route.client
            async with self.line.turn(
                flight, client, arrived=arrived, room=self._room(wanted, reasons, no_room)
            ) as ticket:
                choice = self.choose(wanted, reasons)  # what was free when it came need not be free now
                if isinstance(choice, Nobody) or choice.instance:
                    continue
                progress(Progress("place", choice.why))
                ticket.began = True
                try:
                    return await self._start_on(choice, wanted, flight)
                except HOST_CANNOT as problem:
                    log.info("agent-cannot", agent=choice.node, digest=wanted.record.digest, problem=problem.detail)
                    reasons[choice.node] = Refusal(cause_of(problem), problem.detail)

    def _room_s(self, nobody: Nobody, wanted: Wanted) -> float | None:
        """When an agent has room that lacks nothing but memory; None if that cannot be told."""
        now, members = self._region.clock(), self._region.members
        lacking = [node for node, why in nobody.reasons.items() if why.cause is Cause.MEMORY]
        waits = (members.room_in_s(node, wanted.mem, now) for node in lacking)
        return min((wait for wait in waits if wait is not None), default=None)

    def _room(self, wanted: Wanted, reasons: dict[str, Refusal], no_room: NoCapacity | None) -> Room | None:
        """For a start that waits for room: why, and when it need not wait any more."""
        return None if no_room is None else (no_room, lambda: not isinstance(self.choose(wanted, reasons), Nobody))

    async def _resumed(self, wanted: Wanted, flight: Flight[Local | Remote]) -> Local | None:
        """What was begun before this controller was restarted: for this request, or for any that wants the same."""
        for held in [h for h in self._region.recalled.values() if begun_for(h, wanted)]:
            while self._region.links.missing(held.agent) and loop_time() < self._region.recalled_at + AGENTS_BACK_S:
                await asyncio.sleep(LOOK_AGAIN_S)
            node, report = self._region.members.find(held.instance) or ("", None)
            if report is not None and report.state in (State.RUNNING, State.PAUSED):
                why = f"agent {node[:8]} has it from before this controller was restarted"
                return Local(Placement(node=node, warmth=Warmth.WARM, why=why), node, report, warm=True)
            if report is not None and report.state in (State.FETCHING, State.BUILDING, State.STARTING):
                flight.instance = held.instance
                try:
                    done = await self._commanded(flight, held, wanted)
                except HOST_CANNOT as problem:
                    log.info("agent-cannot", agent=node, digest=held.digest, problem=problem.detail)
                else:
                    choice = Placement(node=node, warmth=Warmth.COLD, why=f"agent {node[:8]} was at it already")
                    return Local(choice, node, done.report, done.timings_ms, done.warm)
        return None

    async def _start_on(self, choice: Placement, wanted: Wanted, flight: Flight[Local | Remote]) -> Local:
        """One attempt on one agent. The memory is reserved before anything is awaited."""
        region, record = self._region, wanted.record
        place_ms = since(wanted.began) - wanted.resolve_ms
        held = Held(
            instance=secrets.token_hex(8),
            digest=record.digest,
            service_id=record.id,
            service_name=record.name,
            mem=wanted.mem,
            host="",
            agent=choice.node,
            flavour=wanted.flavour,
            key=wanted.key,
            origin=wanted.route.origin,
        )
        region.members.reserve(choice.node, held.instance, wanted.mem)
        region.hold(held)
        region.tasks.run(region.journal.flush())  # should we die now, the same request finds it begun
        flight.instance = held.instance
        done = await self._commanded(flight, held, wanted)
        return Local(choice, choice.node, done.report, {**done.timings_ms, "place": place_ms}, done.warm)

    async def _commanded(self, flight: Flight[Local | Remote], held: Held, wanted: Wanted) -> Done:
        region = self._region
        try:
            command = _start_command(held.instance, wanted, at_most_alive_s=region.config.alive_bounds.longest)
            call = region.links.link(held.agent).call(command, timeout_s=START_S, on_progress=flight.progress)
            done = await self._while_wanted(flight, held, call)
        except Problem as problem:
            region.members.release(held.agent, held.instance)
            region.let_go(held.instance)
            if (ending := failed_start(held, region.config.region, problem, region.clock())) is not None:
                region.keep_ending(ending)
            if type(problem) in (Unavailable, DeadlineExceeded) and cause_of(problem) is Cause.AWAY:
                region.abandon(held.agent, held.instance)
            raise
        region.hold(msgspec.structs.replace(held, host=done.report.host))
        return done

    async def _while_wanted(self, flight: Flight[Local | Remote], held: Held, call: Coroutine[Any, Any, Done]) -> Done:
        """The agent's answer. Raises StartFailed where the service is not ready and nobody waits for it any more."""
        patience_s = self._region.config.unwanted_start_s
        task = asyncio.create_task(call)
        try:
            while True:
                left_s = flight.wanted_until + patience_s - loop_time()
                await asyncio.wait({task}, timeout=max(LOOK_S, left_s))
                if task.done():
                    return task.result()
                report = self._starting(held.instance)
                if report is not None and loop_time() >= flight.wanted_until + patience_s:
                    self._region.abandon(held.agent, held.instance)
                    raise _given_up(report)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _starting(self, instance: str) -> InstanceReport | None:
        """None while it is fetched or built: that may take longer than anybody waits."""
        found = self._region.members.find(instance)
        return found[1] if found is not None and found[1].state is State.STARTING else None


def begun_for(held: Held, wanted: Wanted) -> bool:
    """An instance that is as good as one started now. A fresh one only serves the request that it was started for."""
    same = held.digest == wanted.record.digest and held.flavour == wanted.flavour
    return same and (not wanted.request.force_rebuild or (held.key != "" and held.key == wanted.key))


def _given_up(report: InstanceReport) -> StartFailed:
    awaited = f": {report.reason}" if report.reason else ""
    return StartFailed(
        f"instance {report.instance} was not ready when nobody waited for it any more{awaited}",
        fix="Read the log; a slow service needs more time: `--wait SECONDS` (`wait_s`).",
        reason="not-ready",
        log=list(report.log),
    )


def _start_command(instance: str, wanted: Wanted, *, at_most_alive_s: int) -> Start:
    request = wanted.request
    return Start(
        command=secrets.token_hex(8),
        instance=instance,
        digest=wanted.record.digest,
        alive_time=wanted.alive_time,
        at_most_alive_s=at_most_alive_s,
        force_rebuild=request.force_rebuild,
        parameters=request.parameters,
        variant=wanted.offer.variant,
        deadline_s=START_S,
        trace=current_header(),
    )
