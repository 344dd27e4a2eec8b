"""Asking other regions, one after the other, to host what no agent here can."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Collection, Sequence

import msgspec
import structlog
from msgspec import Struct

from protocol.causes import Cause, cause_of
from protocol.decisions import PassedOver
from protocol.instances import InstanceView, OnProgress, Progress, StartAnswer, State
from protocol.problems import (
    ContentNotFound,
    CorruptContent,
    DeadlineExceeded,
    DiskUnusable,
    NoMatchingService,
    Problem,
    Unavailable,
)
from protocol.records import RegionRecord
from region_controller import hierarchy
from region_controller.explained import region_passed_over
from region_controller.handoff import ANSWER_MARGIN_S, MAX_VISITED, HandoffRequest, RemoteRegions
from region_controller.leases import Held
from region_controller.placement import Nobody, Placement
from region_controller.reachability import Door, Doors
from region_controller.refusals import Refusal, asked_by, causes_in, room_in_s, summed_up
from region_controller.region import Region
from region_controller.wanted import Wanted, loop_time

log = structlog.get_logger(__name__)

HOST_CANNOT = (Unavailable, DiskUnusable, ContentNotFound, CorruptContent)
"""Problems of a host, not of the service: another one may do better, or have the archive."""


WARM_ANSWER_S = 2.0
"""For an instance that runs: whoever takes longer saves nobody a cold start."""


class Remote(Struct, frozen=True):
    """Another region took it: whom to ask again, the answer that the first asker got, and why it was asked.

    `here`: the choice among our own agents before. `regions`: those that could not. `opens`: connections from here get
    to the service.
    """

    hop: hierarchy.Hop
    answer: StartAnswer
    why: str = ""
    here: Placement | Nobody = Nobody({})
    regions: tuple[PassedOver, ...] = ()
    opens: bool = True


class PassingOn:
    """`region_records` finds the other controllers in the mesh."""

    def __init__(
        self,
        region: Region,
        remote: RemoteRegions,
        region_records: Callable[[], Awaitable[list[RegionRecord]]],
        doors: Doors,
    ) -> None:
        self._region = region
        self._remote = remote
        self._region_records = region_records
        self._doors = doors

    async def hand_off(
        self, wanted: Wanted, nobody: Nobody, progress: OnProgress, room_s: float | None = None
    ) -> Remote:
        """Ask the other regions, best first. Raises NoCapacity with the reason of each, Unavailable if all that each
        lacks is the archive. `nobody`: why none of our own agents can; `room_s`: when one could, if that is known."""
        here = self._region.config.region
        regions = {
            here: "; ".join(f"agent {node[:8]}: {why.detail}" for node, why in sorted(nobody.reasons.items()))
            or "it has no agents"
        }
        causes = {why.cause for why in nobody.reasons.values()} or {Cause.EMPTY}
        if wanted.route.hops >= hierarchy.MAX_HOPS or len(wanted.route.visited) >= MAX_VISITED:
            raise summed_up(wanted.record, regions, causes, wanted.mem, room_s=[room_s])
        rooms = [room_s]
        asked: set[str] = set()
        silent: set[str] = set()
        passed_over: list[PassedOver] = []
        for find in (self._heard, self._recorded):
            known = [r for r in await find(wanted) if r.node not in asked]
            hops = self._ordered(wanted, known)
            asked |= {h.node for h in hops}
            for hop in hops:
                progress(Progress("place", f"{here} cannot host; asking {hop.region}"))
                try:
                    remote = await self.hand_to(hop, wanted, progress, asked - silent)
                    why = f"no agent of {here} can host it; {hop.region} took it"
                    return msgspec.structs.replace(remote, why=why, here=nobody, regions=tuple(passed_over))
                except (*HOST_CANNOT, NoMatchingService) as problem:
                    if not self._note(hop, wanted, problem):
                        silent.add(hop.node)  # others may get through to it: they need not leave it out
                    asked |= asked_by(problem)
                    silent -= asked_by(problem)
                    theirs = problem.extra.get("regions")
                    regions |= {str(k): str(v) for k, v in theirs.items()} if isinstance(theirs, dict) else {}
                    regions.setdefault(hop.region, problem.detail)
                    causes |= causes_in(problem) or {cause_of(problem)}
                    rooms.append(room_in_s(problem))
                    cause = min(causes_in(problem), key=list(Cause).index, default=cause_of(problem))
                    passed_over.append(region_passed_over(hop.region, cause, regions[hop.region]))
            for far, refusal in self._too_far(wanted, known):
                if far.region not in regions:
                    regions[far.region] = refusal.detail
                    causes.add(refusal.cause)
                    passed_over.append(region_passed_over(far.region, refusal.cause, refusal.detail))
        refusal_of_all = summed_up(wanted.record, regions, causes, wanted.mem, room_s=rooms)
        if wanted.route.hops:  # who handed it to us need not have them asked again; a phone has no use for it
            refusal_of_all.extra["asked"] = sorted(asked - silent)[:MAX_VISITED]
        raise refusal_of_all

    def would_ask(self, wanted: Wanted) -> tuple[list[hierarchy.Hop], list[PassedOver]]:
        """Whom `hand_off` would ask first, of those that are heard now; and who is too far away."""
        known = self._region.relatives.relatives(loop_time())
        far = [region_passed_over(r.region, why.cause, why.detail) for r, why in self._too_far(wanted, known)]
        return self._ordered(wanted, known), far

    def _too_far(self, wanted: Wanted, known: Sequence[hierarchy.Relative]) -> list[tuple[hierarchy.Relative, Refusal]]:
        others = [r for r in known if r.node not in wanted.route.visited and r.node != self._region.me.node]
        reasons = [(r, hierarchy.too_far(r.rtt_s, wanted.within_ms)) for r in others]
        return [(r, reason) for r, reason in reasons if reason is not None]

    async def to_warm(self, wanted: Wanted, choice: Placement, progress: OnProgress) -> Remote | None:
        """Share an instance that runs in another region nearby, where the operator prefers that to a cold start here,
        which is `choice`.

        None if there is none, or it cannot be had: then it is started here, and nobody has to hear of the attempt.
        """
        config = self._region.config
        if not config.prefer_warm_within_s or wanted.request.force_rebuild or wanted.route.hops >= hierarchy.MAX_HOPS:
            return None
        within_s = config.prefer_warm_within_s
        if wanted.within_ms is not None:
            within_s = min(within_s, wanted.within_ms / 1e3)
        found = hierarchy.warm_within(
            within_s,
            self._region.relatives.relatives(loop_time()),
            me=self._region.me.node,
            visited=wanted.route.visited,
            digest=wanted.record.digest,
        )
        if found is None:
            return None
        hop = hierarchy.Hop(found.region, found.node, found.addresses, found.rtt_s)
        progress(Progress("place", f"it runs in {found.region}, nearby; asking there"))
        try:
            remote = await self.hand_to(hop, wanted, progress, only_warm=True)
        except (*HOST_CANNOT, NoMatchingService, DeadlineExceeded) as problem:
            log.info("warm-elsewhere-not-had", region=found.region, digest=wanted.record.digest, problem=problem.detail)
            self._note(hop, wanted, problem)
            return None
        away_ms = 1e3 * (found.rtt_s or 0.0)
        return msgspec.structs.replace(
            remote, why=f"it runs in {found.region}, {away_ms:.0f} ms away, and would start cold here", here=choice
        )

    def _note(self, hop: hierarchy.Hop, wanted: Wanted, problem: Problem) -> bool:
        """The next request need not run into the same wall. Whether it was that controller's own answer."""
        answered = type(problem) is not Unavailable or "causes" in problem.extra
        if answered:
            self._region.relatives.refused(hop.node, wanted.record.digest)
        else:
            self._region.relatives.failed(hop.node, loop_time())
        return answered

    async def _heard(self, _: Wanted) -> list[hierarchy.Relative]:
        """Those that the links between controllers show alive."""
        return self._region.relatives.relatives(loop_time())

    async def _recorded(self, wanted: Wanted) -> list[hierarchy.Relative]:
        """Those that the mesh's records name, and nobody has heard: asked when all others could not."""
        try:
            async with asyncio.timeout_at(wanted.route.deadline):
                records = await self._region_records()
        except TimeoutError:
            raise DeadlineExceeded("no agent here can host, and no time is left to ask other regions") from None
        except Unavailable as problem:
            log.warning("no-regions-found", problem=problem.detail)
            return []
        resting = self._region.relatives.resting(loop_time())
        known = hierarchy.recorded(records, self._region.clock())
        return [r for r in known if r.node not in resting]

    def _ordered(self, wanted: Wanted, known: Sequence[hierarchy.Relative]) -> list[hierarchy.Hop]:
        return hierarchy.candidates(
            self._region.config.region,
            known,
            me=self._region.me.node,
            visited=wanted.route.visited,
            mem=wanted.mem,
            digest=wanted.record.digest,
            strategy=wanted.strategy,
            within_ms=wanted.within_ms,
        )

    async def hand_to(
        self,
        hop: hierarchy.Hop,
        wanted: Wanted,
        progress: OnProgress,
        asked: Collection[str] = (),
        *,
        only_warm: bool = False,
    ) -> Remote:
        """Hand over to one controller, which need not ask who is in `asked`: others did, or we shall.

        Raises the other controller's Problem, Unavailable, DeadlineExceeded.
        """
        left = wanted.route.deadline - loop_time() - ANSWER_MARGIN_S
        if only_warm:
            left = min(left, WARM_ANSWER_S)
        if left <= 0:
            raise DeadlineExceeded(
                "no time is left to ask other regions", fix="Wait longer: `--wait SECONDS` (`wait_s`)."
            )
        spared = wanted.route.visited | {self._region.me.node} | set(asked)
        leases = self._held_with(hop, wanted)
        body = HandoffRequest(
            request=msgspec.structs.replace(wanted.request, leases=leases, variant=wanted.offer.variant),
            digest=wanted.record.digest,
            visited=tuple(sorted(spared - {hop.node}))[:MAX_VISITED],
            hops=wanted.route.hops + 1,
            deadline_s=left,
            request_key=passed_on_key(wanted.request.request_key, wanted.record.digest, leases),
            only_warm=only_warm,
            within_ms=_left_of(wanted.within_ms, hop.rtt_s),
        )
        answer, address = await self._remote.ask(hop, body, progress)
        self._region.hold(
            Held(
                instance=answer.instance,
                digest=wanted.record.digest,
                service_id=wanted.record.id,
                service_name=wanted.record.name,
                mem=wanted.mem,
                host=answer.host,
                flavour=wanted.flavour,
                region=hop.region,
                address=address,
                controller=hop.node,
                origin=wanted.route.origin,
            )
        )
        self._region.grant(answer.instance, answer.lease.token, answer.lease.expires_at)
        self._region.away[answer.instance] = _as_answered(answer, wanted)
        await self._region.journal.flush()
        return Remote(hop, answer, opens=await self._opens(hop, answer))

    async def _opens(self, hop: hierarchy.Hop, answer: StartAnswer) -> bool:
        if answer.url is None or answer.port is None:
            return True
        return await self._doors.look(hop.node, answer.host, answer.port) is Door.OPEN

    def _held_with(self, hop: hierarchy.Hop, wanted: Wanted) -> tuple[str, ...]:
        """Of the client's tokens, those of instances that this controller took: the others do not concern it."""
        if not wanted.request.leases:
            return ()
        leases = self._region.leases
        there = [h.instance for h in leases.all_held() if h.controller == hop.node and h.digest == wanted.record.digest]
        return tuple(t for t in wanted.request.leases if any(leases.known(instance, (t,)) for instance in there))


def passed_on_key(key: str | None, digest: str, leases: Sequence[str]) -> str:
    """The request key towards another controller: one for one request of a client, however often it comes.

    A client that repeats its request because this controller died over it so gets the instance that the other region
    started for it, and not a second one. A client that gave no key cannot be known again.
    """
    if key is None:
        return secrets.token_hex(16)
    return hashlib.sha256(msgspec.msgpack.encode((key, digest, leases))).hexdigest()[:32]


def _left_of(within_ms: float | None, rtt_s: float | None) -> float | None:
    """The way to the other controller counts: its agents may be as far from it as is left then."""
    return None if within_ms is None else max(0.0, within_ms - 1e3 * (rtt_s or 0.0))


def _as_answered(answer: StartAnswer, wanted: Wanted) -> InstanceView:
    """The instance as its start described it."""
    return InstanceView(
        instance=answer.instance,
        service=answer.service,
        state=State.RUNNING,
        region=answer.region,
        agent=answer.agent,
        host=answer.host,
        port=answer.port,
        ports=answer.ports,
        url=answer.url,
        mem=wanted.mem,
        variant=wanted.offer.variant,
        expires_at=answer.lease.expires_at,
    )
