"""From a request to an address: resolve, place, start once for everyone, hand off.

The warm path touches neither disk nor mesh nor engine: the catalogue's cache, the region's books, one frame at most.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal

import msgspec
import structlog
from msgspec import Struct

from protocol.causes import Cause, cause_of
from protocol.decisions import Decision, Outcome, PlacementView
from protocol.events import started
from protocol.instances import InstanceReport, Lease, OnProgress, Progress, ServiceRef, StartAnswer, StartRequest, State
from protocol.link import Done, Extend, Start, Wake
from protocol.problems import (
    DeadlineExceeded,
    InvalidArchive,
    NoCapacity,
    Problem,
    ServiceUnreachable,
    StartFailed,
    Unavailable,
)
from protocol.records import RegionRecord
from protocol.tracing import current_header
from region_controller.agents import Warmth
from region_controller.catalogue import Catalogue
from region_controller.endings import failed_start
from region_controller.explained import decided, handed_on, in_words
from region_controller.flights import Flight, Flights
from region_controller.handoff import HandoffRequest, RemoteRegions
from region_controller.idempotency import Answered, IdempotencyKeys
from region_controller.leases import Held, lease_deadline
from region_controller.offers import offered
from region_controller.passing_on import HOST_CANNOT, PassingOn, Remote
from region_controller.placement import Nobody, Placement, choose
from region_controller.reachability import Door, Doors, reached
from region_controller.recent import answered_view, refused_view
from region_controller.refusals import Refusal, causes_in, summed_up
from region_controller.region import Region, first_address
from region_controller.wanted import Route, Wanted, flavour_of, loop_time, since

log = structlog.get_logger(__name__)

START_S = 600.0
"""How long a start may go on after its last waiter left: an image may have to be built."""
LOOK_S = 1.0
"""Between two looks at a start for which nobody waits any more."""
AGENTS_BACK_S = 10.0
"""After a restart of the controller: how long an agent is waited for that had begun what is asked for."""
LOOK_AGAIN_S = 0.05
EXTEND_MARGIN_S = 2.0
"""An instance this close to its end is extended before it is handed out, not behind it."""
WOULD_S = 10.0
"""For a question about where a service would be placed."""
MAX_HOPS_TOLD = 5
MAX_CANDIDATES_TRIED = 8
"""Of the services that a description fits."""
EXTEND_STEP_S = 1
"""Extensions ask for so much more than needed, so that a busy instance is extended once a second, not per request."""


class Local(Struct, frozen=True):
    """An instance of our own agents, ready. `warm`: it ran already."""

    choice: Placement
    node: str
    report: InstanceReport
    timings_ms: dict[str, float] = {}
    warm: bool = False


class Starts:
    def __init__(
        self,
        region: Region,
        catalogue: Catalogue,
        remote: RemoteRegions,
        region_records: Callable[[], Awaitable[list[RegionRecord]]],
        doors: Doors,
    ) -> None:
        self._region = region
        self._catalogue = catalogue
        self._doors = doors
        self._passing_on = PassingOn(region, remote, region_records, doors)
        self._flights: Flights[Local | Remote] = Flights(region.tasks)
        self._keys = IdempotencyKeys(region.tasks, region.clock)

    async def start(self, request: StartRequest, on_progress: OnProgress, client: str = "") -> Answered:
        """A phone's request. The second value: True if the instance was started for this very request."""
        route = Route(deadline=loop_time() + request.wait_s, client=client)
        return await self._keys.once("", request, on_progress, lambda step: self._start(request, step, route))

    async def receive(self, body: HandoffRequest, peer: str, on_progress: OnProgress) -> Answered:
        """A request that the controller `peer` handed over."""
        request = msgspec.structs.replace(
            body.request,
            service=body.digest,
            category=None,
            inputs=(),
            outputs=(),
            wait_s=body.deadline_s,
            request_key=body.request_key,
        )
        visited = frozenset({*body.visited, peer})
        route = Route(
            deadline=loop_time() + body.deadline_s,
            origin=peer,
            visited=visited,
            hops=body.hops,
            only_warm=body.only_warm,
            within_ms=body.within_ms,
        )
        answered = await self._keys.once(peer, request, on_progress, lambda step: self._start(request, step, route))
        self._region.stats.starts["received"] += 1
        await self._check_reached(answered[0])
        return answered

    async def _check_reached(self, answer: StartAnswer) -> None:
        """Whom we hand an instance to may have to call it through us: raises ServiceUnreachable if we cannot."""
        if answer.url is None or answer.port is None or answer.region != self._region.config.region:
            return
        if await self._doors.look(answer.agent, answer.host, answer.port) is Door.SHUT:
            self._region.end(self._region.leases.lease(answer.instance, answer.lease.token))
            raise ServiceUnreachable(
                f"agent {answer.agent[:8]} runs it at {answer.url}, and its own controller cannot reach it there",
                fix="Give that machine a `host` in its configuration that others reach, or open its firewall.",
            )

    # --- one request ------------------------------------------------------------------------------------------------

    async def _start(self, request: StartRequest, on_progress: OnProgress, route: Route) -> Answered:
        try:
            return await self._first_that_is_whole(request, on_progress, route)
        except Problem as problem:
            self._region.stats.starts["failed"] += 1
            self._region.recent.note(refused_view(request, problem, self._region.clock()))
            if not route.hops:  # it may have waited for the start of another controller's request
                problem.extra.pop("asked", None)
            raise

    async def would(self, service: str) -> PlacementView:
        """Where the service that `service` names would be placed now. Starts nothing.

        Raises as `start`, but NoCapacity: that nobody can is an answer here.
        """
        route = Route(deadline=loop_time() + WOULD_S)
        wanted = await self._resolve(StartRequest(service=service), lambda _: None, route)
        choice = self._choose(wanted)
        decision = self._decided(wanted, choice)
        why, agent = "", ""
        if isinstance(choice, Placement):
            why, agent = choice.why, choice.node
        else:
            hops, far = self._passing_on.would_ask(wanted)
            asked = ", then ".join(hop.region for hop in hops[:MAX_HOPS_TOLD]) or "nobody: no other region is in reach"
            why = f"no agent of {self._region.config.region} can host it; it would ask {asked}"
            decision = handed_on(decision, far, None)
        return PlacementView(
            at=self._region.clock(),
            outcome="would",
            service=wanted.record.id,
            digest=wanted.record.digest,
            region=self._region.config.region if agent else "",
            agent=agent,
            instance=choice.instance or "" if isinstance(choice, Placement) else "",
            why=in_words([wanted.why, why]),
            decision=decision,
        )

    async def _first_that_is_whole(self, request: StartRequest, on_progress: OnProgress, route: Route) -> Answered:
        """Of the services that a description fits, one after the other until the content of one can be had.

        A request that names its service means that one and no other.
        """
        tried: set[str] = set()
        while True:
            wanted = await self._resolve(request, on_progress, route)
            digest = wanted.record.digest
            try:
                answered = await self._warm(wanted) or await self._cold(wanted, on_progress)
            except Problem as problem:
                if not _is_unusable(problem):
                    raise
                self._catalogue.missing(digest)
                if request.service is not None or digest in tried or len(tried) + 1 >= MAX_CANDIDATES_TRIED:
                    raise
                log.info("next-candidate", digest=digest, problem=problem.detail)
                tried.add(digest)
            else:
                self._catalogue.trust(wanted.record.publisher)
                return answered

    async def _resolve(self, request: StartRequest, on_progress: OnProgress, route: Route) -> Wanted:
        began = time.perf_counter()
        on_progress(Progress("resolve", request.service or request.category or "/"))
        try:
            async with asyncio.timeout_at(route.deadline):
                resolved = await self._catalogue.resolve(request, self._region.warmth_of)
        except TimeoutError:
            raise DeadlineExceeded("the mesh did not say in time which service is meant", retry_after=1) from None
        offer = offered(resolved.record, request.variant)
        if isinstance(offer, Refusal):
            here = self._region.config.region
            raise summed_up(resolved.record, {here: offer.detail}, {offer.cause}, resolved.record.mem)
        bounds, asked = self._region.config.alive_bounds, request.alive_time
        return Wanted(
            request=request,
            alive_time=None if asked is None else bounds.within(asked),
            resolved=resolved,
            offer=offer,
            flavour=flavour_of(request.parameters, offer.variant),
            route=route,
            began=began,
            resolve_ms=since(began),
        )

    def _choose(self, wanted: Wanted, refused: dict[str, Refusal] | None = None) -> Placement | Nobody:
        """`refused`: the agents that were asked already, and could not."""
        return choose(wanted.need(), self._region.agents(), self._region.clock(), refused)

    def _decided(self, wanted: Wanted, choice: Placement | Nobody) -> Decision:
        return decided(
            choice,
            self._region.config.region,
            wanted.resolved,
            strategy=wanted.strategy,
            variant=wanted.offer.variant,
        )

    async def _warm(self, wanted: Wanted) -> Answered | None:
        """Share a running instance; None if there is none, or it ends before it can be extended."""
        choice = self._choose(wanted)
        if isinstance(choice, Nobody) or choice.instance is None:
            return None
        found = self._region.members.find(choice.instance)
        if found is None:
            return None
        node, report = found
        place_ms = since(wanted.began) - wanted.resolve_ms
        if not await self._keep_alive(node, report, wanted.alive_time):
            return None
        if report.state is State.PAUSED:
            self._wake(node, report.instance)
        return self._answer(wanted, Local(choice, node, report, {"place": place_ms}, warm=True), opened=False)

    def _wake(self, node: str, instance: str) -> None:
        """Its engine thaws it while the answer is on its way, rather than when the client's first byte is there."""
        try:
            self._region.links.link(node).post(Wake(secrets.token_hex(8), instance))
        except Problem as problem:
            log.info("wake-failed", instance=instance, agent=node, problem=problem.detail)

    async def _cold(self, wanted: Wanted, on_progress: OnProgress) -> Answered:
        if wanted.route.only_warm:
            raise NoCapacity(f"{wanted.record.id} does not run in {self._region.config.region} any more")
        return await self._together(wanted, on_progress)

    async def _together(self, wanted: Wanted, on_progress: OnProgress) -> Answered:
        """Open the start, or join the one under way."""
        fresh = wanted.request.force_rebuild
        key = secrets.token_hex(8) if fresh else (wanted.record.digest, wanted.flavour)
        flight, opened = self._flights.join(key, lambda flight: self._bring_up(wanted, flight))
        try:
            landed = await flight.wait(on_progress, wanted.route.deadline - loop_time())
        except DeadlineExceeded:
            if flight.landed:
                raise
            raise self._late(wanted, flight) from None
        if isinstance(landed, Local):
            if not opened:
                _, report = self._region.members.find(landed.report.instance) or (landed.node, landed.report)
                await self._keep_alive(landed.node, report, wanted.alive_time)
            answered = self._answer(wanted, landed, opened=opened)
            if opened:
                await self._region.journal.flush()
            return answered
        if opened:
            return self._handed_answer(wanted, landed), landed.answer.start == "cold"
        own = await self._passing_on.hand_to(landed.hop, wanted, on_progress)
        own = msgspec.structs.replace(own, why=landed.why, here=landed.here, regions=landed.regions)
        return self._handed_answer(wanted, own), own.answer.start == "cold"

    async def _keep_alive(self, node: str, report: InstanceReport, alive_time: int | None) -> bool:
        """The instance lives at least `alive_time` from now. False if it may be gone before it hears of that."""
        now = self._region.clock()
        asked = report.alive_time if alive_time is None else alive_time
        deadline = lease_deadline(asked, now)
        if report.expires_at is None or (deadline is not None and deadline <= report.expires_at):
            return True
        longer = asked + EXTEND_STEP_S if asked else 0
        command = Extend(secrets.token_hex(8), report.instance, longer)
        try:
            link = self._region.links.link(node)
            if report.expires_at - now < EXTEND_MARGIN_S:
                await link.call(command, timeout_s=EXTEND_MARGIN_S)
            else:
                link.post(command)
                extended = msgspec.structs.replace(report, expires_at=lease_deadline(longer, now))
                self._region.members.changed(node, extended, now)
        except Problem as problem:
            log.info("extend-failed", instance=report.instance, agent=node, problem=problem.detail)
            return False
        return True

    # --- bring up: owned by the flight ------------------------------------------------------------------------------

    async def _bring_up(self, wanted: Wanted, flight: Flight[Local | Remote]) -> Local | Remote:
        progress = flight.progress
        reasons: dict[str, Refusal] = {}
        if (resumed := await self._resumed(wanted, flight)) is not None:
            return resumed
        while True:
            choice = self._choose(wanted, reasons)
            if isinstance(choice, Nobody):
                return await self._passing_on.hand_off(wanted, choice, progress)
            if choice.instance and (found := self._region.members.find(choice.instance)):
                return Local(choice, *found, warm=True)
            cold_here = choice.warmth >= Warmth.CACHED and not reasons
            if cold_here and (remote := await self._passing_on.to_warm(wanted, choice, progress)) is not None:
                return remote
            progress(Progress("place", choice.why))
            try:
                return await self._start_on(choice, wanted, flight)
            except HOST_CANNOT as problem:
                log.info("agent-cannot", agent=choice.node, digest=wanted.record.digest, problem=problem.detail)
                reasons[choice.node] = Refusal(cause_of(problem), problem.detail)

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

    def _late(self, wanted: Wanted, flight: Flight[Local | Remote]) -> DeadlineExceeded:
        """What a start under way is waiting for, to those who do not wait with it."""
        found = self._region.members.find(flight.instance) if flight.instance is not None else None
        doing, lines = flight.last.message if flight.last is not None else "", list[str]()
        if found is not None:
            node, report = found
            doing = f"agent {node[:8]} is {report.state} it" + (f": {report.reason}" if report.reason else "")
            lines = list(report.log)
        return DeadlineExceeded(
            f"{wanted.record.id} is not ready within {wanted.request.wait_s:g} s; {doing or 'its start goes on'}",
            fix="Ask again: the request joins the start under way. Or wait longer: `--wait SECONDS` (`wait_s`).",
            retry_after=5,
            log=lines,
        )

    # --- answers ----------------------------------------------------------------------------------------------------

    def _answer(self, wanted: Wanted, local: Local, *, opened: bool) -> Answered:
        now = self._region.clock()
        report = local.report
        alive_time = report.alive_time if wanted.alive_time is None else wanted.alive_time
        token = self._region.leases.known(report.instance, wanted.request.leases) or secrets.token_urlsafe(24)
        lease = self._region.grant(report.instance, token, lease_deadline(alive_time, now))
        cold = opened and not local.warm
        kind: Literal["cold", "warm"] = "cold" if cold else "warm"
        joined = not opened and not local.warm
        host, port, url = first_address(report)
        measured = local.timings_ms if not joined else {}
        notes = ["joined a start already under way"] if joined else []
        if wanted.alive_time != wanted.request.alive_time:
            notes.append(f"this region lets it live {alive_time} s")
        answer = StartAnswer(
            instance=report.instance,
            service=ServiceRef(wanted.record.digest, wanted.record.id, wanted.record.name),
            start=kind,
            region=self._region.config.region,
            agent=local.node,
            host=host,
            port=port,
            ports=report.ports,
            url=url,
            lease=Lease(token, lease.deadline, self._region.config.rest),
            timings_ms=wanted.timings(measured),
            why=in_words([wanted.why, local.choice.why, *notes]),
            decision=self._decided(wanted, local.choice),
        )
        answer = reached(answer, wanted.route.client)
        self._region.stats.started("joined" if joined else kind, answer.timings_ms)
        self._tell(answer, kind)
        return answer, cold

    def _handed_answer(self, wanted: Wanted, remote: Remote) -> StartAnswer:
        here, theirs = self._region.config.region, remote.answer
        answer = msgspec.structs.replace(
            theirs,
            handoff=(here, *theirs.handoff),
            timings_ms=wanted.timings(theirs.timings_ms),
            why=in_words([wanted.why, f"{remote.why}: {theirs.why}"]),
            decision=handed_on(self._decided(wanted, remote.here), remote.regions, theirs.decision),
        )
        answer = reached(answer, wanted.route.client, opens=remote.opens)
        self._region.stats.started("handed_off", answer.timings_ms)
        self._tell(answer, "handed-off")
        return answer

    def _tell(self, answer: StartAnswer, outcome: Outcome) -> None:
        """To who listens, and to who asks later."""
        self._region.feed.tell(lambda: started(answer))
        self._region.recent.note(answered_view(answer, outcome, self._region.clock()))


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


def _is_unusable(problem: Problem) -> bool:
    """True if the service itself is at fault: its archive cannot be had, or is none."""
    return isinstance(problem, InvalidArchive) or Cause.CONTENT in causes_in(problem)


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
