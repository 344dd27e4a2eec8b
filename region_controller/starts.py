"""From a request to an address: resolve, place, start once for everyone, hand off.

The warm path touches neither disk nor mesh nor engine: the catalogue's cache, the region's books, one frame at most.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec
import structlog
from msgspec import Struct

from protocol.instances import InstanceReport, Lease, Progress, ServiceRef, StartAnswer, StartRequest
from protocol.link import Extend, Start
from protocol.problems import (
    Conflict,
    ContentNotFound,
    DeadlineExceeded,
    DiskFull,
    NoCapacity,
    NoMatchingService,
    Problem,
    Unavailable,
)
from protocol.records import RegionRecord, ServiceRecord
from region_controller import hierarchy
from region_controller.catalogue import Catalogue
from region_controller.flights import Flights, OnProgress
from region_controller.handoff import ANSWER_MARGIN_S, HandoffRequest, RemoteRegions
from region_controller.leases import Held, lease_deadline
from region_controller.placement import Need, Nobody, Placement, choose
from region_controller.region import Region, first_address
from region_controller.stats import PHASES

log = structlog.get_logger(__name__)

START_S = 600.0
"""How long a start may go on after its last waiter left: an image may have to be built."""
RETRY_AFTER_S = 5
EXTEND_MARGIN_S = 2.0
"""An instance this close to its end is extended before it is handed out, not behind it."""
EXTEND_STEP_S = 1
"""Extensions ask for so much more than needed, so that a busy instance is extended once a second, not per request."""
REMEMBER_S = 600.0
MAX_REMEMBERED = 10_000
"""Answers kept for repeated request keys."""

HOST_CANNOT = (Unavailable, DiskFull)
"""Problems of a host, not of the service: another one may do better."""


class Route(Struct, frozen=True, kw_only=True):
    """How a request came here. `deadline` on the event loop's clock. `origin`: the controller that handed it over."""

    deadline: float
    origin: str = ""
    visited: frozenset[str] = frozenset()
    hops: int = 0


class Local(Struct, frozen=True):
    """An instance of our own agents, ready. `warm`: it ran already."""

    node: str
    report: InstanceReport
    why: str
    timings_ms: dict[str, float] = {}
    warm: bool = False


class Remote(Struct, frozen=True):
    """Another region took it: whom to ask again, and the answer that the first asker got."""

    hop: hierarchy.Hop
    answer: StartAnswer


class _Wanted(Struct, frozen=True, kw_only=True):
    """A request once resolved."""

    request: StartRequest
    record: ServiceRecord
    flavour: str
    route: Route
    why: str
    began: float
    resolve_ms: float

    def need(self, labels: dict[str, str]) -> Need:
        return Need(
            digest=self.record.digest,
            mem=self.record.mem,
            kind=self.record.kind,
            labels=labels,
            flavour=self.flavour,
            fresh=self.request.force_rebuild,
        )


Answered = tuple[StartAnswer, bool]


class Starts:
    """`labels_of`: labels that a service asks of its agent, as far as this node has read its archive."""

    def __init__(
        self,
        region: Region,
        catalogue: Catalogue,
        remote: RemoteRegions,
        region_records: Callable[[], Awaitable[list[RegionRecord]]],
        labels_of: Callable[[str], dict[str, str]],
    ) -> None:
        self._region = region
        self._catalogue = catalogue
        self._remote = remote
        self._region_records = region_records
        self._labels_of = labels_of
        self._flights: Flights[Local | Remote] = Flights(region.tasks)
        self._repeats: Flights[Answered] = Flights(region.tasks)
        self._answered: OrderedDict[tuple[str, str], tuple[StartRequest, Answered, float]] = OrderedDict()

    async def start(self, request: StartRequest, on_progress: OnProgress) -> Answered:
        """A phone's request. The second value: True if the instance was started for this very request."""
        return await self._once("", request, on_progress, lambda step: self._start(request, step, self._route(request)))

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
        route = Route(deadline=_now() + body.deadline_s, origin=peer, visited=visited, hops=body.hops)
        answer, cold = await self._once(peer, request, on_progress, lambda step: self._start(request, step, route))
        self._region.stats.starts["received"] += 1
        return answer, cold

    # --- a repeated request is the same request ---------------------------------------------------------------------

    async def _once(
        self,
        who: str,
        request: StartRequest,
        on_progress: OnProgress,
        work: Callable[[OnProgress], Awaitable[Answered]],
    ) -> Answered:
        if request.request_key is None:
            return await work(on_progress)
        key = (who, request.request_key)
        if known := self._answered.get(key):
            first, answered, at = known
            if time.monotonic() - at <= REMEMBER_S:
                if _same(first, request):
                    return answered
                raise Conflict("the request key was used for another request", fix="Use a new key for each request.")
        flight, _ = self._repeats.join(key, lambda step: self._remember(key, request, work(step)))
        return await flight.wait(on_progress, request.wait_s)

    async def _remember(self, key: tuple[str, str], request: StartRequest, work: Awaitable[Answered]) -> Answered:
        answered = await work
        self._answered[key] = (request, answered, time.monotonic())
        self._answered.move_to_end(key)
        while len(self._answered) > MAX_REMEMBERED:
            self._answered.popitem(last=False)
        return answered

    # --- one request ------------------------------------------------------------------------------------------------

    def _route(self, request: StartRequest) -> Route:
        return Route(deadline=_now() + request.wait_s)

    async def _start(self, request: StartRequest, on_progress: OnProgress, route: Route) -> Answered:
        try:
            wanted = await self._resolve(request, on_progress, route)
            return await self._warm(wanted) or await self._together(wanted, on_progress)
        except Problem:
            self._region.stats.starts["failed"] += 1
            raise

    async def _resolve(self, request: StartRequest, on_progress: OnProgress, route: Route) -> _Wanted:
        began = time.perf_counter()
        on_progress(Progress("resolve", request.service or request.category or "/"))
        try:
            async with asyncio.timeout_at(route.deadline):
                record, why = await self._catalogue.resolve(request, self._region.warmth_of)
        except TimeoutError:
            raise DeadlineExceeded("the mesh did not say in time which service is meant", retry_after=1) from None
        return _Wanted(
            request=request,
            record=record,
            flavour=flavour_of(request),
            route=route,
            why=why,
            began=began,
            resolve_ms=_since(began),
        )

    def _choose(self, wanted: _Wanted, without: frozenset[str] = frozenset()) -> Placement | Nobody:
        agents = [a for a in self._region.agents() if a.node not in without]
        return choose(wanted.need(self._labels_of(wanted.record.digest)), agents, self._region.clock())

    async def _warm(self, wanted: _Wanted) -> Answered | None:
        """Share a running instance; None if there is none, or it ends before it can be extended."""
        choice = self._choose(wanted)
        if isinstance(choice, Nobody) or choice.instance is None:
            return None
        found = self._region.members.find(choice.instance)
        if found is None:
            return None
        node, report = found
        place_ms = _since(wanted.began) - wanted.resolve_ms
        if not await self._keep_alive(node, report, wanted.request.alive_time):
            return None
        return self._answer(wanted, Local(node, report, choice.why, {"place": place_ms}, warm=True), opened=False)

    async def _together(self, wanted: _Wanted, on_progress: OnProgress) -> Answered:
        """Open the start, or join the one under way."""
        fresh = wanted.request.force_rebuild
        key = secrets.token_hex(8) if fresh else (wanted.record.digest, wanted.flavour)
        flight, opened = self._flights.join(key, lambda step: self._bring_up(wanted, step))
        landed = await flight.wait(on_progress, wanted.route.deadline - _now())
        if isinstance(landed, Local):
            if opened:
                await self._region.journal.flush()
            else:
                _, report = self._region.members.find(landed.report.instance) or (landed.node, landed.report)
                await self._keep_alive(landed.node, report, wanted.request.alive_time)
            return self._answer(wanted, landed, opened=opened)
        if opened:
            return self._handed_answer(wanted, landed), landed.answer.start == "cold"
        own = await self._hand_to(landed.hop, wanted, self._route_nodes(wanted, ()))
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

    async def _bring_up(self, wanted: _Wanted, progress: OnProgress) -> Local | Remote:
        reasons: dict[str, str] = {}
        while True:
            choice = self._choose(wanted, frozenset(reasons))
            if isinstance(choice, Nobody):
                return await self._hand_off(wanted, {**choice.reasons, **reasons}, progress)
            if choice.instance and (found := self._region.members.find(choice.instance)):
                return Local(*found, choice.why, warm=True)
            progress(Progress("place", choice.why))
            try:
                return await self._start_on(choice, wanted, progress)
            except HOST_CANNOT as problem:
                log.info("agent-cannot", agent=choice.node, digest=wanted.record.digest, problem=problem.detail)
                reasons[choice.node] = problem.detail

    async def _start_on(self, choice: Placement, wanted: _Wanted, progress: OnProgress) -> Local:
        """One attempt on one agent. The memory is reserved before anything is awaited."""
        region, record = self._region, wanted.record
        place_ms = _since(wanted.began) - wanted.resolve_ms
        held = Held(
            instance=secrets.token_hex(8),
            digest=record.digest,
            service_id=record.id,
            service_name=record.name,
            mem=record.mem,
            host="",
            agent=choice.node,
            flavour=wanted.flavour,
            origin=wanted.route.origin,
        )
        region.members.reserve(choice.node, held.instance, record.mem)
        region.hold(held)
        try:
            done = await region.links.link(choice.node).call(
                _start_command(held.instance, wanted), timeout_s=START_S, on_progress=progress
            )
        except Problem as problem:
            region.members.release(choice.node, held.instance)
            region.let_go(held.instance)
            if type(problem) in (Unavailable, DeadlineExceeded):
                region.abandon(choice.node, held.instance)
            raise
        region.hold(msgspec.structs.replace(held, host=done.report.host))
        return Local(choice.node, done.report, choice.why, {**done.timings_ms, "place": place_ms}, done.warm)

    # --- hand-off ---------------------------------------------------------------------------------------------------

    async def _hand_off(self, wanted: _Wanted, reasons: dict[str, str], progress: OnProgress) -> Remote:
        """Ask the other regions, best first. Raises NoCapacity with the reason of each."""
        here = self._region.config.region
        why_here = "; ".join(f"agent {node[:8]}: {why}" for node, why in sorted(reasons.items())) or "it has no agents"
        regions = {here: why_here}
        hops = await self._candidates(wanted) if wanted.route.hops < hierarchy.MAX_HOPS else []
        nodes = self._route_nodes(wanted, hops)
        for hop in hops:
            progress(Progress("place", f"{here} cannot host; asking {hop.region}"))
            try:
                return await self._hand_to(hop, wanted, nodes)
            except NoCapacity as problem:
                theirs = problem.extra.get("regions")
                regions |= {str(k): str(v) for k, v in theirs.items()} if isinstance(theirs, dict) else {}
                regions.setdefault(hop.region, problem.detail)
            except (*HOST_CANNOT, NoMatchingService, ContentNotFound) as problem:
                regions[hop.region] = problem.detail
        raise NoCapacity(
            f"no agent in {len(regions)} region(s) can host {wanted.record.id} ({wanted.record.mem} MB) now",
            fix="Ask again later, stop something, or add an agent with `cornerstore bootstrap invite`.",
            regions=regions,
            retry_after=RETRY_AFTER_S,
        )

    async def _candidates(self, wanted: _Wanted) -> list[hierarchy.Hop]:
        try:
            async with asyncio.timeout_at(wanted.route.deadline):
                records = await self._region_records()
        except TimeoutError:
            raise DeadlineExceeded("no agent here can host, and no time is left to ask other regions") from None
        return hierarchy.candidates(
            self._region.config.region,
            records,
            me=self._region.me.node,
            visited=wanted.route.visited,
            mem=wanted.record.mem,
            now=self._region.clock(),
        )

    def _route_nodes(self, wanted: _Wanted, hops: list[hierarchy.Hop] | tuple[()]) -> frozenset[str]:
        """Whom the receiver need not ask: who was asked, and whom we ask ourselves."""
        return wanted.route.visited | {self._region.me.node} | {hop.node for hop in hops}

    async def _hand_to(self, hop: hierarchy.Hop, wanted: _Wanted, nodes: frozenset[str]) -> Remote:
        """Raises the other controller's Problem, Unavailable, DeadlineExceeded."""
        left = wanted.route.deadline - _now() - ANSWER_MARGIN_S
        if left <= 0:
            raise DeadlineExceeded("no time is left to ask other regions", fix="Allow more time in wait_s.")
        body = HandoffRequest(
            request=wanted.request,
            digest=wanted.record.digest,
            visited=tuple(sorted(nodes - {hop.node}))[:256],
            hops=wanted.route.hops + 1,
            deadline_s=left,
            request_key=secrets.token_hex(16),
        )
        answer, address = await self._remote.ask(hop, body)
        self._region.hold(
            Held(
                instance=answer.instance,
                digest=wanted.record.digest,
                service_id=wanted.record.id,
                service_name=wanted.record.name,
                mem=wanted.record.mem,
                host=answer.host,
                flavour=wanted.flavour,
                region=hop.region,
                address=address,
                controller=hop.node,
                origin=wanted.route.origin,
            )
        )
        self._region.grant(answer.instance, answer.lease.token, answer.lease.expires_at)
        await self._region.journal.flush()
        return Remote(hop, answer)

    # --- answers ----------------------------------------------------------------------------------------------------

    def _answer(self, wanted: _Wanted, local: Local, *, opened: bool) -> Answered:
        now = self._region.clock()
        report = local.report
        alive_time = report.alive_time if wanted.request.alive_time is None else wanted.request.alive_time
        token = secrets.token_urlsafe(24)
        lease = self._region.grant(report.instance, token, lease_deadline(alive_time, now))
        cold = opened and not local.warm
        kind: Literal["cold", "warm"] = "cold" if cold else "warm"
        joined = not opened and not local.warm
        host, port, url = first_address(report)
        measured = local.timings_ms if not joined else {}
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
            lease=Lease(token, lease.deadline),
            timings_ms=_timings(wanted, measured),
            why=f"{wanted.why}; {local.why}" + ("; joined a start already under way" if joined else ""),
        )
        self._region.stats.started("joined" if joined else kind, answer.timings_ms)
        return answer, cold

    def _handed_answer(self, wanted: _Wanted, remote: Remote) -> StartAnswer:
        here, theirs = self._region.config.region, remote.answer
        answer = msgspec.structs.replace(
            theirs,
            handoff=(here, *theirs.handoff),
            timings_ms=_timings(wanted, theirs.timings_ms),
            why=f"{wanted.why}; no agent of {here} can host it; {remote.hop.region} took it: {theirs.why}",
        )
        self._region.stats.started("handed_off", answer.timings_ms)
        return answer


def flavour_of(request: StartRequest) -> str:
    """What tells customised instances of one service apart; empty for the plain service."""
    if not request.parameters and request.variant is None:
        return ""
    plain = msgspec.json.encode([sorted(request.parameters.items()), request.variant])
    return hashlib.sha256(plain).hexdigest()[:32]


def _start_command(instance: str, wanted: _Wanted) -> Start:
    request = wanted.request
    return Start(
        command=secrets.token_hex(8),
        instance=instance,
        digest=wanted.record.digest,
        alive_time=request.alive_time,
        force_rebuild=request.force_rebuild,
        parameters=request.parameters,
        variant=request.variant,
        deadline_s=START_S,
    )


def _same(a: StartRequest, b: StartRequest) -> bool:
    """The deadline does not make a request another one."""
    return msgspec.structs.replace(a, wait_s=1.0) == msgspec.structs.replace(b, wait_s=1.0)


def _timings(wanted: _Wanted, measured: dict[str, float]) -> dict[str, float]:
    timings = {phase: round(measured.get(phase, 0.0), 3) for phase in PHASES}
    return timings | {"resolve": round(wanted.resolve_ms, 3), "total": round(_since(wanted.began), 3)}


def _now() -> float:
    return asyncio.get_running_loop().time()


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1e3
