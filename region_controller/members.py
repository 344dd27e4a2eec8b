"""The agents of one region and what runs on them. Pure: events come in with `now`, snapshots go out.

Memory is never over-committed: a start reserves its memory before the command is sent, and the reservation is held
until a heartbeat that was sent after the agent had announced the instance, so that the agent's own count includes it.
The link keeps order, which is what makes this exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from protocol.instances import HOLDS_MEMORY, AgentView, InstanceReport, State
from protocol.link import HEARTBEAT_S, Hello, Resources
from region_controller.agents import AgentState, Running
from region_controller.summaries import MAX_LABELS, MAX_RUNTIMES, MAX_WARM, Load, mark_of

SUSPECT_AFTER_S = 3 * HEARTBEAT_S
"""Three missed heartbeats: nothing new is placed there."""
FORGET_AFTER_S = 3600.0
"""How long an agent without a link, and its instances, are remembered."""

FlavourOf = Callable[[str], str | None]
"""The flavour of an instance by its id, None if nobody knows."""


class _Reservation(msgspec.Struct):
    mem: int
    announced: bool = False


class _Member:
    def __init__(self, hello: Hello, now: float) -> None:
        self.hello = hello
        self.resources = hello.resources
        self.heard = now
        self.connected = True
        self.rtt_ms: float | None = None
        self.reservations: dict[str, _Reservation] = {}
        self.instances: dict[str, InstanceReport] = {}

    @property
    def memory_free(self) -> int:
        """The lesser of two counts: the agent's own, and ours from what we know to run there."""
        reserved = sum(r.mem for r in self.reservations.values())
        unseen = sum(r.mem for key, r in self.reservations.items() if key not in self.instances)
        live = sum(i.mem for i in self.instances.values() if i.holds_memory)
        return max(0, min(self.resources.memory_free - reserved, self.resources.memory_total - live - unseen))

    def give_back(self, ended: InstanceReport) -> None:
        """Its memory can be used at once, not only after the next heartbeat."""
        if self.reservations.pop(ended.instance, None) is None:
            free = min(self.resources.memory_free + ended.mem, self.resources.memory_total)
            self.resources = msgspec.structs.replace(self.resources, memory_free=free)


class Members:
    def __init__(self) -> None:
        self._members: dict[str, _Member] = {}

    # --- events -----------------------------------------------------------------------------------------------------

    def hello(self, hello: Hello, now: float) -> list[str]:
        """The agent is (back) here. Returns the instances it had before and does not know any more."""
        before = self._members.get(hello.node)
        member = _Member(hello, now)
        member.instances = {
            r.instance: r for r in hello.instances if not r.gone and not self._is_anothers(hello.node, r.instance)
        }
        self._members[hello.node] = member
        return [i for i in before.instances if i not in member.instances] if before else []

    def heartbeat(self, node: str, resources: Resources, now: float) -> None:
        if member := self._members.get(node):
            member.heard, member.resources = now, resources
            member.reservations = {k: r for k, r in member.reservations.items() if not r.announced}

    def changed(self, node: str, report: InstanceReport, now: float) -> bool:
        """An instance is in a new state. One that is gone is forgotten. False if the agent has no say in it."""
        member = self._members.get(node)
        if member is None or self._is_anothers(node, report.instance):
            return False
        member.heard = now
        before = member.instances.pop(report.instance, None)
        if not report.gone:
            member.instances[report.instance] = report
        if report.holds_memory:
            if reservation := member.reservations.get(report.instance):
                reservation.announced = True
        elif before is not None and before.holds_memory:
            member.give_back(before)
        return True

    def _is_anothers(self, node: str, instance: str) -> bool:
        """An agent speaks for its own instances only: not for one that another agent runs or was asked to start."""
        return any(
            instance in member.instances or instance in member.reservations
            for other, member in self._members.items()
            if other != node
        )

    def measured(self, node: str, rtt_ms: float | None) -> None:
        """The round trip to the agent, as the link knows it."""
        if member := self._members.get(node):
            member.rtt_ms = rtt_ms

    def heard(self, node: str, now: float) -> None:
        if member := self._members.get(node):
            member.heard = now

    def lost(self, node: str, now: float) -> None:
        """The link dropped: what ran there is unknown until the agent says hello again."""
        if member := self._members.get(node):
            member.connected, member.heard = False, now
            member.reservations.clear()
            member.instances = {
                key: msgspec.structs.replace(r, state=State.UNKNOWN, reason="the agent's link is down")
                for key, r in member.instances.items()
            }

    def expected(self, node: str, reports: Iterable[InstanceReport], now: float) -> None:
        """After a restart of the controller: instances of an agent that has not said hello yet."""
        member = self._members.setdefault(node, _Member(_absent(node), now))
        member.connected = False
        member.instances.update(
            (r.instance, msgspec.structs.replace(r, state=State.UNKNOWN, reason="waiting for its agent"))
            for r in reports
        )

    def reserve(self, node: str, instance: str, mem: int) -> None:
        """Hold memory for a start. Raises ValueError if it is not free: placement asks first."""
        member = self._members[node]
        if mem > member.memory_free:
            raise ValueError(f"{mem} MB asked, {member.memory_free} MB free")
        member.reservations[instance] = _Reservation(mem)

    def release(self, node: str, instance: str) -> None:
        """A start ended without an instance."""
        if member := self._members.get(node):
            member.reservations.pop(instance, None)

    def sweep(self, now: float) -> list[str]:
        """Forget agents gone for long. Returns the instances that went with them."""
        gone = [n for n, m in self._members.items() if not m.connected and now - m.heard > FORGET_AFTER_S]
        return [instance for node in gone for instance in self._members.pop(node).instances]

    # --- views ------------------------------------------------------------------------------------------------------

    def agents(self, now: float, flavour_of: FlavourOf) -> list[AgentState]:
        """What placement sees."""
        return [
            AgentState(
                node=node,
                runtimes=m.resources.runtimes,
                labels=m.hello.labels,
                memory_total=m.resources.memory_total,
                memory_free=m.memory_free,
                cached=frozenset(m.resources.cached),
                built=frozenset(m.resources.built),
                running=tuple(
                    Running(r.instance, r.digest, flavour_of(r.instance), r.expires_at, r.state is State.PAUSED)
                    for r in m.instances.values()
                    if r.state in (State.RUNNING, State.PAUSED)
                ),
                load=m.resources.load,
                silent_s=max(0.0, now - m.heard) if m.connected else None,
                suspect_s=SUSPECT_AFTER_S,
                rtt_ms=m.rtt_ms,
            )
            for node, m in self._members.items()
            if m.connected or m.hello.host
        ]

    def find(self, instance: str) -> tuple[str, InstanceReport] | None:
        """Node and last report of an instance."""
        for node, member in self._members.items():
            if report := member.instances.get(instance):
                return node, report
        return None

    def room_in_s(self, node: str, mem: int, now: float) -> float | None:
        """When `mem` MB are free on an agent, if nobody prolongs what runs there; None if not by the end of lives."""
        member = self._members[node]
        lacking = mem - member.memory_free
        lives = [
            (i.expires_at, i.mem) for i in member.instances.values() if i.holds_memory and i.expires_at is not None
        ]
        for expires_at, size in sorted(lives):
            lacking -= size
            if lacking <= 0:
                return max(0.0, expires_at - now)
        return None

    def instances(self) -> list[tuple[str, InstanceReport]]:
        return [(node, r) for node, m in self._members.items() for r in m.instances.values()]

    def forget(self, instance: str) -> None:
        for member in self._members.values():
            member.instances.pop(instance, None)

    def capacity(self) -> tuple[int, int, int]:
        """Agents with a link, their memory in all, their free memory (MB)."""
        there = [m for m in self._members.values() if m.connected]
        return len(there), sum(m.resources.memory_total for m in there), sum(m.memory_free for m in there)

    def load(self, *, queue: int, slots: int) -> Load:
        """What the agents with a link could host, as other regions hear of it."""
        there = [m for m in self._members.values() if m.connected]
        labels = sorted({(str(k)[:64], str(v)[:64]) for m in there for k, v in m.hello.labels.items() if k and v})
        warm = {
            mark_of(r.digest) for m in there for r in m.instances.values() if r.state in (State.RUNNING, State.PAUSED)
        }
        return Load(
            agents=len(there),
            memory_total=sum(m.resources.memory_total for m in there),
            memory_free=sum(m.memory_free for m in there),
            largest_free=max((m.memory_free for m in there), default=0),
            queue=queue,
            slots=slots,
            runtimes=tuple(sorted({r[:32] for m in there for r in m.resources.runtimes if r}))[:MAX_RUNTIMES],
            labels=tuple(labels[:MAX_LABELS]),
            warm=tuple(sorted(warm))[:MAX_WARM],
        )

    def views(self, now: float) -> list[AgentView]:
        return [
            AgentView(
                node=node,
                host=m.hello.host,
                runtimes=m.resources.runtimes,
                memory_total=m.resources.memory_total,
                memory_free=m.memory_free,
                instances=sum(1 for r in m.instances.values() if r.state in HOLDS_MEMORY),
                labels=m.hello.labels,
                age_s=round(max(0.0, now - m.heard), 3),
                load=m.resources.load,
                rtt_ms=None if m.rtt_ms is None else round(m.rtt_ms, 3),
            )
            for node, m in sorted(self._members.items())
            if m.connected
        ]


def _absent(node: str) -> Hello:
    nothing = Resources(0, 0)
    return Hello(version=0, node=node, mesh="", region="", host="", labels={}, resources=nothing, instances=())
