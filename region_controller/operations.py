"""What holders of a lease and operators do with an instance: look, read its log, stop, restart, extend, remove.

Here or by proxy.
"""

from __future__ import annotations

import math
import secrets

import msgspec
import structlog
from msgspec import Struct

from protocol.instances import RELAY_S, RESTART_S, InstanceLog, InstanceReport, InstanceView, ServiceRef, State
from protocol.link import MAX_REASON, Extend, OnInstance, ReadLog, Remove, Restart, Stop
from protocol.problems import Conflict, Problem, UnknownInstance
from region_controller.handoff import AliveRequest, RemoteRegions, Verb
from region_controller.leases import Held, LeaseRow, later, lease_deadline, unknown_instance
from region_controller.region import Region

log = structlog.get_logger(__name__)

COMMAND_S = 60.0
LOG_S = 10.0
KEEP_LAPSED_S = 3600.0
"""How long a handed-off instance is remembered after its last lease ran out."""

_MAY_BE_OVER = "it ran when it was last looked at; its time may be over"


class Caller(Struct, frozen=True):
    """Who asks. `token`: what came as `Authorization: Bearer`. `peer`: the controller that passes it on, if any."""

    token: str | None = None
    operator: bool = False
    peer: str = ""


class Reached(Struct, frozen=True):
    """An instance that can be called: its own URL; `held`, if another controller answers for it."""

    url: str
    held: Held | None


class Operations:
    def __init__(self, region: Region, remote: RemoteRegions) -> None:
        self._region = region
        self._remote = remote

    # --- look -------------------------------------------------------------------------------------------------------

    def instances(self) -> list[InstanceView]:
        """Those of our agents, and those handed off as they were last seen, starts that failed of late."""
        here = [self._region.view(node, report) for node, report in self._region.members.instances()]
        away = [self._last_seen(held) for held in self._region.leases.all_held() if held.address]
        failed = self._region.endings.failed_starts(self._region.clock())
        return sorted([*here, *away, *failed], key=lambda v: (v.service.id, v.instance))

    async def instance(self, instance: str) -> InstanceView:
        """Raises InstanceEnded (with the reason), UnknownInstance."""
        if failed := self._ended(instance):
            return failed
        held = self._region.leases.held(instance)
        if held is None or not held.address:
            return self._view(instance)
        try:
            view = await self._remote.view(held)
        except UnknownInstance as problem:
            self._region.forget(instance, _why_gone(problem))
            raise
        except Problem as problem:
            return msgspec.structs.replace(self._last_seen(held), state=State.UNKNOWN, reason=problem.detail)
        self._region.away[instance] = view
        return view

    async def log(self, instance: str, lines: int, caller: Caller) -> InstanceLog:
        """What it wrote last. Holders and operators only: a log may tell what others asked of the service.

        Raises InstanceEnded, UnknownInstance, KeyNeeded, Forbidden, Conflict, Unavailable.
        """
        if failed := self._ended(instance):
            return InstanceLog(instance, failed.log[-lines:])
        lease = self._authorise(instance, caller)
        held = self._region.leases.held(instance)
        if held is not None and held.address:
            return await self._remote.log(held, lines, token=caller.token, operator=lease is None)
        node, _ = self._find(instance)
        done = await self._region.links.link(node).call(ReadLog(_id(), instance, lines), timeout_s=LOG_S)
        return InstanceLog(instance, done.lines)

    async def reached_at(self, instance: str, caller: Caller) -> Reached:
        """Where an instance is called, for who holds it. One that nobody hears of now may run all the same.

        Raises InstanceEnded, UnknownInstance, KeyNeeded, Forbidden, Conflict.
        """
        if self._ended(instance) is None:
            self._authorise(instance, caller)
        view = await self.instance(instance)
        if view.state in (State.STOPPED, State.FAILED, State.REMOVED):
            raise Conflict(f"instance {instance} is {view.state}: it cannot be called", fix="Start the service again.")
        if view.url is None:
            raise Conflict(f"instance {instance} of {view.service.id} has no TCP port to call")
        held = self._region.leases.held(instance)
        return Reached(view.url, held if held is not None and held.address else None)

    def _ended(self, instance: str) -> InstanceView | None:
        """A start that failed. None for what is not known to have ended; raises InstanceEnded for what is."""
        now = self._region.clock()
        ending = self._region.endings.find(instance, now)
        if ending is None or self._region.members.find(instance):
            return None
        if ending.failed_start:
            return ending.view
        raise ending.problem(now)

    def _view(self, instance: str) -> InstanceView:
        return self._region.view(*self._find(instance))

    def _find(self, instance: str) -> tuple[str, InstanceReport]:
        if found := self._region.members.find(instance):
            return found
        raise unknown_instance(instance)

    def _last_seen(self, held: Held) -> InstanceView:
        seen = self._region.away.get(held.instance)
        if seen is not None:
            over = (
                seen.state is State.RUNNING and seen.expires_at is not None and seen.expires_at < self._region.clock()
            )
            return msgspec.structs.replace(seen, state=State.UNKNOWN, reason=_MAY_BE_OVER) if over else seen
        lapsed = self._region.leases.lapsed(held.instance, self._region.clock())
        return InstanceView(
            instance=held.instance,
            service=ServiceRef(held.digest, held.service_id, held.service_name),
            state=State.UNKNOWN,
            region=held.region,
            agent="",
            host=held.host,
            mem=held.mem,
            reason=f"handed off to {held.region}, " + ("its time may be over" if lapsed else "not asked yet"),
        )

    # --- act --------------------------------------------------------------------------------------------------------

    async def act(self, verb: Verb, instance: str, caller: Caller, body: AliveRequest | None = None) -> InstanceView:
        """The instance afterwards.

        Raises InstanceEnded, UnknownInstance, KeyNeeded, Forbidden, Conflict, Unavailable.
        """
        if failed := self._ended(instance):
            return self._dismiss(failed, verb)
        lease = self._authorise(instance, caller)
        held = self._region.leases.held(instance)
        asked = body or AliveRequest()
        if held is not None and held.address:
            return await self._by_proxy(held, lease, verb, caller, asked)
        self._find(instance)
        if asked.alive_time is not None:
            asked = AliveRequest(self._region.config.alive_bounds.within(asked.alive_time))
        if verb in ("stop", "remove") and lease is not None and (view := await self._end_one_of_many(instance, lease)):
            return view
        by = "operator" if lease is None else "client"
        if verb == "stop":
            return await self._command(Stop(_id(), instance, f"stopped-by-{by}"))
        if verb == "remove":
            return await self._remove(instance, f"removed-by-{by}")
        if verb == "restart":
            view = await self._command(Restart(_id(), instance))
        else:
            view = await self._extend(instance, asked.alive_time)
        if lease is not None:
            alive_time = view.alive_time if asked.alive_time is None else asked.alive_time
            self._region.extend(lease, lease_deadline(alive_time, self._region.clock()))
        return view

    def _dismiss(self, failed: InstanceView, verb: Verb) -> InstanceView:
        """Anybody may: nobody ever got a lease on it, and nothing of it is left but this view."""
        if verb != "remove":
            raise Conflict(
                f"instance {failed.instance} never ran: its start failed ({failed.reason})",
                fix="Start the service anew; `cornerstore rm` takes the failed start off the list.",
            )
        self._region.dismiss_ending(failed.instance)
        return msgspec.structs.replace(failed, state=State.REMOVED)

    async def _remove(self, instance: str, reason: str) -> InstanceView:
        """An instance that its agent does not know (any more) is removed already."""
        last = self._view(instance)
        try:
            view = await self._command(Remove(_id(), instance, reason))
        except UnknownInstance:
            view = msgspec.structs.replace(last, state=State.REMOVED, reason="its agent did not know it any more")
        self._region.forget(instance, view.reason)
        return view

    def _authorise(self, instance: str, caller: Caller) -> LeaseRow | None:
        """The caller's lease, None for an operator: ours, or the one of the region that handed the instance to us."""
        held = self._region.leases.held(instance)
        if caller.operator and (not caller.peer or (held is not None and held.origin == caller.peer)):
            return None
        if held is None and self._region.members.find(instance):
            raise Conflict(f"nobody holds a lease on instance {instance}", fix="An operator may stop and remove it.")
        return self._region.leases.lease(instance, caller.token)

    async def _end_one_of_many(self, instance: str, lease: LeaseRow) -> InstanceView | None:
        """While others hold the instance, a holder only ends its own lease, and what it asked for is asked no more."""
        now = self._region.clock()
        others = self._region.leases.others(lease, now)
        if not others:
            return None
        self._region.end(lease)
        longest = self._region.leases.longest(instance, now)
        if longest is not None and later(lease.deadline, longest) != longest:
            await self._let_go(instance, math.ceil(longest - now))
        holds = "1 other lease holds" if others == 1 else f"{others} other leases hold"
        return msgspec.structs.replace(
            self._view(instance), reason=f"your lease ended; the instance goes on because {holds} it"
        )

    async def _let_go(self, instance: str, alive_time: int) -> None:
        """Tell the agent how long the remaining leases ask for. The lease has ended, whether the agent hears or not."""
        try:
            await self._command(Extend(_id(), instance, alive_time, exact=True))
        except Problem as problem:
            log.info("life-not-shortened", instance=instance, problem=problem.detail)

    async def _extend(self, instance: str, alive_time: int | None) -> InstanceView:
        _, report = self._find(instance)
        if report.state in (State.STOPPED, State.FAILED):
            raise Conflict(f"instance {instance} is {report.state}: it cannot be kept alive", fix="Restart it.")
        return await self._command(Extend(_id(), instance, alive_time))

    async def _command(self, command: OnInstance) -> InstanceView:
        instance = command.instance
        node, _ = self._find(instance)
        timeout_s = RESTART_S + RELAY_S if isinstance(command, Restart) else COMMAND_S
        done = await self._region.links.link(node).call(command, timeout_s=timeout_s)
        return self._region.view(node, done.report)

    async def _by_proxy(
        self, held: Held, lease: LeaseRow | None, verb: Verb, caller: Caller, body: AliveRequest
    ) -> InstanceView:
        try:
            view = await self._remote.command(held, verb, token=caller.token, operator=lease is None, body=body)
        except UnknownInstance as problem:
            self._region.forget(held.instance, _why_gone(problem))
            raise
        self._region.away[held.instance] = view
        if view.state == State.REMOVED:
            self._region.forget(held.instance, view.reason)
        elif lease is not None and verb in ("alive", "restart"):
            self._region.extend(lease, view.expires_at)
        elif lease is not None and view.state is not State.STOPPED:  # others hold it
            self._region.end(lease)
            self._region.away[held.instance] = msgspec.structs.replace(view, reason="")
        return view

    def sweep(self) -> None:
        """Forget what is long over: agents that never came back, and handed-off instances nobody holds."""
        now = self._region.clock()
        for instance in self._region.members.sweep(now):
            self._region.forget(instance, "its agent was not heard of any more")
        for held in self._region.leases.all_held():
            if held.address and self._region.leases.lapsed(held.instance, now - KEEP_LAPSED_S):
                self._region.forget(held.instance, "its lease ran out")


def _why_gone(problem: UnknownInstance) -> str:
    """As the region says that had it."""
    return str(problem.extra.get("reason") or "its region does not know it any more")[:MAX_REASON]


def _id() -> str:
    return secrets.token_hex(8)
