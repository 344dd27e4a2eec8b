"""The agent's instances: the current entry of each, memory accounting, and what follows from an event.

No `await` here: an event is applied, journaled and reported in one go, so no other task ever sees half a decision.
The effects that concern the engine are returned to the runner.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator

import structlog

from agent import lifecycle
from agent.clock import Clock
from agent.journal import Entry, Journal
from agent.lifecycle import Effect, Instance
from agent.runtime import RuntimeInstance
from protocol.causes import Cause
from protocol.instances import HOLDS_MEMORY, InstanceReport, State
from protocol.problems import NoCapacity, Problem, UnknownInstance

log = structlog.get_logger(__name__)

PERSIST_STEP_S = 1.0
"""A deadline that moves by less is neither written nor reported: traffic must not write to the disk each time."""

OnReport = Callable[[InstanceReport], None]


class Slot:
    """One instance in memory. `lock` orders the engine calls for it; `changed` is set at each event.

    `seen` is the engine's last word on it; None while a start was decided and the engine not yet asked.
    `used_at`: when a client's traffic or the service's own message was last noticed, Unix s.
    """

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.lock = asyncio.Lock()
        self.changed = asyncio.Event()
        self.seen: RuntimeInstance | None = None
        self.persisted_expiry = entry.instance.expires_at
        self.unsaved = False
        """The disk (full, or locked) refused to keep the entry as it is now."""
        self.used_at = 0.0
        self.look_again_at = math.inf
        """In the event loop's time: the engine was asked about it and did not say."""
        self.waking = False
        """It was woken and the engine not yet told: what the engine shows until then is of before."""

    @property
    def id(self) -> str:
        return self.entry.instance.instance

    @property
    def state(self) -> State:
        return self.entry.instance.state

    @property
    def addresses(self) -> frozenset[str]:
        return frozenset(a.address for a in self.seen.attachments) if self.seen is not None else frozenset()

    def idle_s(self, now: float) -> float | None:
        """Seconds that it has been running unused. None where use cannot be seen: not running, or not TCP alone."""
        if self.state is not State.RUNNING or {port.protocol for port in self.entry.ports} != {"tcp"}:
            return None
        return now - max(self.used_at, self.entry.instance.since)

    def upstream(self, container_port: int) -> tuple[str, int] | None:
        """Where the container itself answers; None while it does not run."""
        if self.seen is None or self.state not in {State.STARTING, State.RUNNING, State.PAUSED}:
            return None
        return self.seen.upstream(container_port)


class Instances:
    """`memory_mb` is what this agent offers. Reserved is what instances need that hold memory: it never exceeds it."""

    def __init__(self, journal: Journal, *, memory_mb: int, host: str, clock: Clock) -> None:
        self._journal = journal
        self._slots: dict[str, Slot] = {}
        self._listeners: set[OnReport] = set()
        self.memory_mb = memory_mb
        self.host = host
        self._clock = clock

    def now(self) -> float:
        """Unix s. If the machine's clock was set meanwhile, all that is remembered has moved along by then."""
        now, set_by_s = self._clock.read()
        if set_by_s:
            log.warning("clock-set", by_s=round(set_by_s, 1), fix="Deadlines moved along; check the machine's time.")
            for slot in self:
                slot.used_at += set_by_s
                self.apply(slot, lifecycle.ClockSet(now=now, by_s=set_by_s))
        return now

    def __iter__(self) -> Iterator[Slot]:
        return iter(tuple(self._slots.values()))

    def find(self, instance: str) -> Slot | None:
        return self._slots.get(instance)

    def get(self, instance: str) -> Slot:
        slot = self._slots.get(instance)
        if slot is None:
            raise UnknownInstance(f"instance {instance} is not on this agent")
        return slot

    @property
    def reserved(self) -> int:
        return sum(slot.entry.mem for slot in self._slots.values() if slot.state in HOLDS_MEMORY)

    @property
    def free(self) -> int:
        """May be negative when less is offered than before and instances were adopted."""
        return self.memory_mb - self.reserved

    @property
    def offered(self) -> int:
        """What a start may have: what is free, and what is only kept warm."""
        return max(0, self.free + sum(slot.entry.mem for slot in self._kept_warm()))

    def in_the_way(self, slot: Slot, mem: int) -> list[Slot]:
        """Of the services kept warm, those that must go before `slot` can have `mem` MB: the longest frozen first.

        None of them if all were not enough.
        """
        lacking = mem - self.free - (slot.entry.mem if slot.state in HOLDS_MEMORY else 0)
        victims: list[Slot] = []
        for kept in sorted(self._kept_warm(), key=lambda kept: kept.entry.instance.since):
            if lacking > 0 and kept is not slot:
                victims.append(kept)
                lacking -= kept.entry.mem
        return victims if lacking <= 0 else []

    def _kept_warm(self) -> list[Slot]:
        return [slot for slot in self if slot.entry.instance.kept_warm]

    def restore(self) -> None:
        """Take over what the journal knows."""
        for entry in self._journal.entries():
            self._slots[entry.instance.instance] = Slot(entry)

    def add(self, instance: str, digest: str, variant: str | None = None) -> Slot:
        """A new instance in `fetching`; it reserves nothing yet: what it needs is written in the archive."""
        slot = Slot(Entry(instance=Instance(instance=instance, since=self.now()), digest=digest, variant=variant))
        self._slots[instance] = slot
        self._store(slot)
        self._report(slot)
        return slot

    def reserve(self, slot: Slot, mem: int) -> None:
        """Raises NoCapacity rather than promising memory twice."""
        held = slot.entry.mem if slot.state in HOLDS_MEMORY else 0
        if mem > self.free + held:
            raise NoCapacity(
                f"the service needs {mem} MB, this agent has {max(self.free + held, 0)} MB of {self.memory_mb} MB left",
                fix="Stop an instance, or let the agent offer more memory.",
                cause=Cause.MEMORY,
            )
        self.update(slot, mem=mem)

    def update(self, slot: Slot, **changes: object) -> None:
        slot.entry = slot.entry.replace(**changes)
        self._store(slot)

    def apply(self, slot: Slot, event: lifecycle.AnyEvent) -> tuple[Effect, ...]:
        """Step the lifecycle, write and report it. Returns the effects on the engine."""
        before = slot.entry.instance
        after, effects = lifecycle.step(before, event)
        if after is before:
            return effects
        slot.entry = slot.entry.replace(instance=after)
        if not self._is_mere_life_sign(slot, before, after):
            self._store_when_possible(slot)
            self._report(slot)
        slot.changed.set()
        return tuple(effect for effect in effects if effect is not Effect.REPORT)

    def store_pending(self) -> None:
        """Write what a full disk refused before."""
        for slot in self:
            if slot.unsaved:
                self._store_when_possible(slot)

    def forget(self, slot: Slot) -> None:
        if self._slots.get(slot.id) is slot:
            del self._slots[slot.id]
            self._journal.forget(slot.id)

    def report(self, slot: Slot) -> InstanceReport:
        entry, instance = slot.entry, slot.entry.instance
        return InstanceReport(
            instance=slot.id,
            digest=entry.digest,
            service_id=entry.service_id,
            service_name=entry.service_name,
            state=instance.state,
            mem=entry.mem,
            host=self.host,
            variant=entry.variant,
            ports=entry.ports,
            alive_time=instance.alive_time,
            started_at=instance.started_at,
            expires_at=instance.expires_at,
            reason=instance.reason,
            log=instance.log,
        )

    def reports(self) -> tuple[InstanceReport, ...]:
        return tuple(self.report(slot) for slot in self)

    def subscribe(self, listener: OnReport) -> Callable[[], None]:
        """Call `listener` at every change; the result unsubscribes."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def _is_mere_life_sign(self, slot: Slot, before: Instance, after: Instance) -> bool:
        if after.state is not before.state or after.reason != before.reason:
            return False
        kept = slot.persisted_expiry
        return kept is not None and after.expires_at is not None and abs(after.expires_at - kept) < PERSIST_STEP_S

    def _store_when_possible(self, slot: Slot) -> None:
        """What happened has happened, whether the disk has room for it or not: it is written later."""
        try:
            self._store(slot)
        except Problem as problem:
            if not slot.unsaved:
                log.warning("instance-not-saved", instance=slot.id, detail=problem.detail, fix=problem.fix)
            slot.unsaved = True
        else:
            slot.unsaved = False

    def _store(self, slot: Slot) -> None:
        slot.persisted_expiry = slot.entry.instance.expires_at
        self._journal.keep(slot.entry)

    def _report(self, slot: Slot) -> None:
        report = self.report(slot)
        for listener in tuple(self._listeners):
            listener(report)
