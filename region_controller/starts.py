"""From a request to an address: resolve, place, start once for everyone, hand off.

The warm path touches neither disk nor mesh nor engine: the catalogue's cache, the region's books, one frame at most.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec
import structlog

from protocol.causes import Cause
from protocol.decisions import Decision, Outcome, PlacementView
from protocol.events import started
from protocol.instances import Lease, OnProgress, Progress, ServiceRef, StartAnswer, StartRequest, State
from protocol.problems import (
    DeadlineExceeded,
    InvalidArchive,
    NoCapacity,
    Problem,
    ServiceUnreachable,
)
from protocol.records import RegionRecord
from region_controller.bringing_up import BringingUp, Local
from region_controller.catalogue import Catalogue
from region_controller.explained import decided, handed_on, in_words
from region_controller.flights import Flight, Flights, Present, always
from region_controller.handoff import HandoffRequest, RemoteRegions
from region_controller.idempotency import Answered, IdempotencyKeys
from region_controller.leases import lease_deadline
from region_controller.offers import offered
from region_controller.passing_on import PassingOn, Remote
from region_controller.placement import Nobody, Placement
from region_controller.prolonging import Prolonging
from region_controller.reachability import Door, Doors, reached
from region_controller.recent import answered_view, refused_view
from region_controller.refusals import Refusal, causes_in, summed_up
from region_controller.region import Region, first_address
from region_controller.wanted import Route, Wanted, flavour_of, loop_time, since

log = structlog.get_logger(__name__)

WOULD_S = 10.0
"""For a question about where a service would be placed."""
MAX_HOPS_TOLD = 5
MAX_CANDIDATES_TRIED = 8
"""Of the services that a description fits."""


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
        self._prolonging = Prolonging(region)
        self._bringing_up = BringingUp(region, self._passing_on)
        self.line = self._bringing_up.line
        self._flights: Flights[Local | Remote] = Flights(region.tasks)
        self._keys = IdempotencyKeys(region.tasks, region.clock)

    async def start(
        self, request: StartRequest, on_progress: OnProgress, client: str = "", present: Present = always
    ) -> Answered:
        """A phone's request. `client`: its address; `present`: whether it is still there.

        The second value: True if the instance was started for this very request.
        """
        route = Route(deadline=loop_time() + request.wait_s, client=client)
        return await self._once("", request, on_progress, route, present)

    async def _once(
        self, who: str, request: StartRequest, on_progress: OnProgress, route: Route, present: Present
    ) -> Answered:
        async def work(step: OnProgress, anybody: Present) -> Answered:
            return await self._start(request, step, msgspec.structs.replace(route, present=anybody))

        return await self._keys.once(who, request, on_progress, work, present)

    async def receive(
        self, body: HandoffRequest, peer: str, on_progress: OnProgress, present: Present = always
    ) -> Answered:
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
        answered = await self._once(peer, request, on_progress, route, present)
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
        choice = self._bringing_up.choose(wanted)
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
                resolved = await self._catalogue.resolve(request, self._region.warmths)
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
        choice = self._bringing_up.choose(wanted)
        if isinstance(choice, Nobody) or choice.instance is None:
            return None
        found = self._region.members.find(choice.instance)
        if found is None:
            return None
        node, report = found
        place_ms = since(wanted.began) - wanted.resolve_ms
        if not await self._prolonging.until(node, report, wanted.alive_time):
            return None
        if report.state is State.PAUSED:
            self._prolonging.wake(node, report.instance)
        return self._answer(wanted, Local(choice, node, report, {"place": place_ms}, warm=True), opened=False)

    async def _cold(self, wanted: Wanted, on_progress: OnProgress) -> Answered:
        if wanted.route.only_warm:
            raise NoCapacity(f"{wanted.record.id} does not run in {self._region.config.region} any more")
        return await self._together(wanted, on_progress)

    async def _together(self, wanted: Wanted, on_progress: OnProgress) -> Answered:
        """Open the start, or join the one under way."""
        fresh = wanted.request.force_rebuild
        key = secrets.token_hex(8) if fresh else (wanted.record.digest, wanted.flavour)
        flight, opened = self._flights.join(key, lambda flight: self._bringing_up.start(wanted, flight))
        try:
            landed = await flight.wait(on_progress, wanted.route.deadline - loop_time(), wanted.route.present)
        except DeadlineExceeded:
            if flight.landed:
                raise
            raise self._late(wanted, flight) from None
        if isinstance(landed, Local):
            if not opened:
                _, report = self._region.members.find(landed.report.instance) or (landed.node, landed.report)
                await self._prolonging.until(landed.node, report, wanted.alive_time)
            answered = self._answer(wanted, landed, opened=opened)
            if opened:
                await self._region.journal.flush()
            return answered
        if opened:
            return self._handed_answer(wanted, landed), landed.answer.start == "cold"
        own = await self._passing_on.hand_to(landed.hop, wanted, on_progress)
        own = msgspec.structs.replace(own, why=landed.why, here=landed.here, regions=landed.regions)
        return self._handed_answer(wanted, own), own.answer.start == "cold"

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


def _is_unusable(problem: Problem) -> bool:
    """True if the service itself is at fault: its archive cannot be had, or is none."""
    return isinstance(problem, InvalidArchive) or Cause.CONTENT in causes_in(problem)
