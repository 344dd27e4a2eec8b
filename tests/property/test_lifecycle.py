"""The life cycle under any sequence of events, and the agent's memory under any sequence of reservations."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent import lifecycle
from agent.clock import Clock
from agent.instances import Instances
from agent.journal import open_journal
from agent.lifecycle import Effect, Instance, step
from agent.runtime import Condition
from protocol.instances import State
from protocol.problems import Conflict, NoCapacity


class Life(RuleBasedStateMachine):
    """One instance with a model of the container that the effects act on."""

    @initialize(alive_time=st.integers(0, 20), wait=st.booleans())
    def begin(self, alive_time: int, wait: bool) -> None:
        self.now = 0.0
        self.alive_time = alive_time
        self.wait = wait
        self.container: Condition = Condition.GONE
        self.instance = Instance(instance="one", since=0.0)
        self.prolonged_to: float | None = None

    def happen(self, event: lifecycle.AnyEvent) -> None:
        before = self.instance
        self.instance, effects = step(before, event)
        for effect in effects:
            if effect is Effect.STOP and self.container is not Condition.GONE:
                self.container = Condition.EXITED
            elif effect is Effect.PAUSE and self.container is Condition.RUNNING:
                self.container = Condition.PAUSED
            elif (effect is Effect.RESUME and self.container is Condition.PAUSED) or effect is Effect.START:
                self.container = Condition.RUNNING
            elif effect is Effect.REMOVE:
                self.container = Condition.GONE
        assert (before.state is self.instance.state) or Effect.REPORT in effects, "every transition is told"
        lived = before.state in lifecycle.LIVE and not before.kept_warm
        if before.expires_at is not None and self.instance.expires_at is not None and lived:
            dropped = isinstance(event, lifecycle.Extended) and event.exact
            least = min(before.expires_at, self.now + before.alive_time) if dropped else before.expires_at
            assert self.instance.expires_at >= least, "a life is not shortened, but for a wish that is dropped"

    @rule(seconds=st.floats(0.1, 30), busy=st.booleans())
    def time_passes(self, seconds: float, busy: bool) -> None:
        self.now += seconds
        deadline, state, keeps = self.instance.expires_at, self.instance.state, self.instance.keep_s
        kept = self.instance.kept_warm
        self.happen(lifecycle.Tick(now=self.now, busy=busy, ready_timeout_s=300))
        due = deadline is not None and self.now >= deadline and state in {State.RUNNING, State.PAUSED}
        if state in {State.RUNNING, State.PAUSED}:
            over = due and not busy
            assert (self.instance.state is State.STOPPED) == (over and (kept or not keeps))
            assert self.instance.kept_warm == ((kept and not over) or (over and not kept and keeps > 0))

    @precondition(lambda self: self.instance.state is State.FETCHING)
    @rule()
    def described(self) -> None:
        self.happen(lifecycle.Described(now=self.now, alive_time=self.alive_time, wait_for_start=self.wait))

    @precondition(lambda self: self.instance.state is State.BUILDING)
    @rule()
    def built(self) -> None:
        self.happen(lifecycle.Built(now=self.now))
        self.container = Condition.RUNNING

    @precondition(lambda self: self.container is Condition.RUNNING)
    @rule(kind=st.sampled_from([lifecycle.Answered, lifecycle.AliveReceived, lifecycle.Traffic]))
    def sign(self, kind: type[lifecycle.Answered]) -> None:
        self.happen(kind(now=self.now))

    @rule(keep_s=st.sampled_from([0.0, 5.0, 50.0]))
    def keep(self, keep_s: float) -> None:
        self.happen(lifecycle.KeepAsked(now=self.now, keep_s=keep_s))

    @rule()
    def nobody_uses_it(self) -> None:
        before = self.instance.state
        self.happen(lifecycle.Idle(now=self.now))
        assert self.instance.state is (State.PAUSED if before is State.RUNNING else before)

    @rule()
    def someone_connects(self) -> None:
        before = self.instance.state
        self.happen(lifecycle.Woken(now=self.now))
        assert self.instance.state is (State.RUNNING if before is State.PAUSED else before)
        assert before is not State.PAUSED or self.container is not Condition.PAUSED, "who connects finds it awake"

    @rule(alive_time=st.none() | st.integers(0, 50), exact=st.booleans())
    def extend(self, alive_time: int | None, exact: bool) -> None:
        self.happen(lifecycle.Extended(now=self.now, alive_time=alive_time, exact=exact))

    @rule()
    def stop(self) -> None:
        self.happen(lifecycle.StopAsked(now=self.now, reason="stopped-by-client"))

    @rule()
    def restart(self) -> None:
        try:
            self.happen(lifecycle.RestartAsked(now=self.now))
        except Conflict:
            assert self.instance.state in lifecycle.UNBORN | {State.UNKNOWN, State.REMOVED}

    @precondition(lambda self: self.container in {Condition.RUNNING, Condition.PAUSED})
    @rule(ending=st.sampled_from([Condition.EXITED, Condition.PAUSED, Condition.RUNNING]))
    def container_changes(self, ending: Condition) -> None:
        self.container = ending

    @rule(exit_code=st.integers(0, 2), out_of_memory=st.booleans())
    def look(self, exit_code: int, out_of_memory: bool) -> None:
        ended = self.container is Condition.EXITED
        self.happen(
            lifecycle.Seen(
                now=self.now,
                condition=self.container,
                exit_code=exit_code if ended else None,
                out_of_memory=out_of_memory and ended,
            )
        )
        agreed = {Condition.RUNNING: {State.RUNNING, State.STARTING}, Condition.PAUSED: {State.PAUSED, State.STARTING}}
        if self.container in agreed:
            assert self.instance.state in agreed[self.container] | lifecycle.UNBORN
        else:
            assert self.instance.state in lifecycle.ENDED | lifecycle.UNBORN | {State.REMOVED}

    @precondition(lambda self: self.instance.state in {State.RUNNING, State.PAUSED})
    @rule(exit_code=st.sampled_from(sorted(lifecycle.ENDED_WITH_ENGINE)), away_s=st.floats(0, 30))
    def engine_or_machine_takes_it_along(self, exit_code: int, away_s: float) -> None:
        before = self.instance
        self.happen(lifecycle.EngineAway(now=self.now) if exit_code % 2 else lifecycle.Resumed(now=self.now))
        self.container = Condition.EXITED
        self.now += away_s
        self.happen(lifecycle.Seen(now=self.now, condition=Condition.EXITED, exit_code=exit_code))
        over = before.expires_at is not None and self.now >= before.expires_at
        assert self.instance.state is (State.STOPPED if over or before.kept_warm else State.STARTING)
        assert self.instance.expires_at == (None if self.instance.state is State.STOPPED else before.expires_at)

    @rule()
    def port_is_taken(self) -> None:
        before = self.instance
        self.happen(lifecycle.PortMoved(now=self.now))
        assert (self.instance.state, self.instance.expires_at) == (before.state, before.expires_at)
        assert before.state not in lifecycle.ENDED or self.instance.reason == before.reason, "why it ended stays told"

    @rule(by_s=st.floats(-1e6, 1e6))
    def clock_is_set(self, by_s: float) -> None:
        before, left = self.instance, self.instance.expires_at
        self.now += by_s
        self.instance, effects = step(before, lifecycle.ClockSet(now=self.now, by_s=by_s))
        assert (self.instance.state, self.instance.reason) == (before.state, before.reason)
        assert left is None or self.instance.expires_at == left + by_s
        assert effects in {(), (Effect.REPORT,)}

    @rule()
    def engine_goes(self) -> None:
        self.happen(lifecycle.EngineAway(now=self.now))

    @rule()
    def work_fails(self) -> None:
        if self.instance.state in {State.FETCHING, State.BUILDING, State.STARTING}:
            self.happen(lifecycle.WorkFailed(now=self.now, reason="x"))
            assert self.instance.state is State.FAILED

    @invariant()
    def deadlines_belong_to_the_living(self) -> None:
        if hasattr(self, "instance"):
            if self.instance.state in lifecycle.ENDED | {State.REMOVED}:
                assert self.instance.expires_at is None
                assert self.container in {Condition.EXITED, Condition.GONE}, "what ended does not run"
            if self.instance.state in lifecycle.LIVE:
                assert self.instance.started_at is not None
                assert (self.instance.expires_at is None) or self.instance.expires_at > self.instance.started_at


class Memory(RuleBasedStateMachine):
    """However instances come and go, what is reserved fits into what is offered, also after a restart."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.count = 0
        self.open()

    def open(self) -> None:
        self.journal = open_journal(Path(self.folder.name) / "agent.sqlite")
        kept = self.journal.__enter__()
        self.instances = Instances(kept, memory_mb=100, host="h", clock=Clock(lambda: 0.0, lambda: 0.0))
        self.instances.restore()

    def teardown(self) -> None:
        self.journal.__exit__(None, None, None)
        self.folder.cleanup()

    @rule(mem=st.integers(1, 120))
    def start(self, mem: int) -> None:
        self.count += 1
        slot = self.instances.add(f"i{self.count}", "sha256:" + "0" * 64)
        free = self.instances.free
        if mem > free:
            with pytest.raises(NoCapacity):
                self.instances.reserve(slot, mem)
            self.instances.forget(slot)
        else:
            self.instances.reserve(slot, mem)
            self.instances.apply(slot, lifecycle.Described(now=0, alive_time=0, wait_for_start=False))
            self.instances.apply(slot, lifecycle.Built(now=0))
            self.instances.apply(slot, lifecycle.Answered(now=0))

    @rule(which=st.integers(0, 5), again=st.booleans())
    def stop_or_restart(self, which: int, again: bool) -> None:
        slots = list(self.instances)
        if which < len(slots):
            slot = slots[which]
            if slot.state is State.RUNNING:
                self.instances.apply(slot, lifecycle.StopAsked(now=0, reason="x"))
            elif again:
                try:
                    self.instances.reserve(slot, slot.entry.mem)
                    self.instances.apply(slot, lifecycle.RestartAsked(now=0))
                    self.instances.apply(slot, lifecycle.Answered(now=0))
                except NoCapacity:
                    assert slot.entry.mem > self.instances.free

    @rule()
    def agent_restarts(self) -> None:
        before = self.instances.reports()
        self.journal.__exit__(None, None, None)
        self.open()
        assert {r.instance: r for r in self.instances.reports()} == {r.instance: r for r in before}

    @invariant()
    def never_oversubscribed(self) -> None:
        assert 0 <= self.instances.reserved <= 100


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestMemory = Memory.TestCase
TestMemory.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
