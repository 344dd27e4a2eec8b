"""The instance life cycle as tables: no clock, no engine, no loop."""

from __future__ import annotations

import pytest

from agent.lifecycle import (
    RETENTION_S,
    AliveReceived,
    Answered,
    AnyEvent,
    Awaiting,
    Built,
    Described,
    Effect,
    EngineAway,
    Extended,
    Instance,
    RemoveAsked,
    RestartAsked,
    Resumed,
    Seen,
    StopAsked,
    Tick,
    Traffic,
    WorkFailed,
    step,
)
from agent.runtime import Condition
from protocol.instances import State
from protocol.problems import Conflict

NEW = Instance(instance="one", since=0.0)
STARTING = Instance(instance="one", since=2.0, state=State.STARTING, alive_time=10)
RUNNING = Instance(instance="one", since=3.0, state=State.RUNNING, alive_time=10, started_at=3.0, expires_at=13.0)
STOPPED = Instance(instance="one", since=9.0, state=State.STOPPED, alive_time=10, started_at=3.0, reason="expired")
UNKNOWN = Instance(instance="one", since=5.0, state=State.UNKNOWN, alive_time=10, started_at=3.0, expires_at=13.0)
RESTARTING = Instance(instance="one", since=9.0, state=State.STARTING, alive_time=10, started_at=3.0)


def live(*events: AnyEvent, begin: Instance = NEW) -> Instance:
    for event in events:
        begin, _ = step(begin, event)
    return begin


def test_a_life_from_request_to_removal() -> None:
    told = [
        step(live(*events), last)[0].state
        for *events, last in (
            [Described(now=1, alive_time=10, wait_for_start=False)],
            [Described(now=1, alive_time=10, wait_for_start=False), Built(now=2)],
            [Described(now=1, alive_time=10, wait_for_start=False), Built(now=2), Answered(now=3)],
        )
    ]
    assert told == [State.BUILDING, State.STARTING, State.RUNNING]
    ready = live(Described(now=1, alive_time=10, wait_for_start=False), Built(now=2), Answered(now=3))
    assert (ready.started_at, ready.expires_at) == (3, 13)


@pytest.mark.parametrize(
    ("wait_for_start", "sign", "state"),
    [
        (False, Answered(now=3), State.RUNNING),
        (False, AliveReceived(now=3), State.STARTING),
        (True, AliveReceived(now=3), State.RUNNING),
        (True, Answered(now=3), State.STARTING),
        (False, Traffic(now=3), State.STARTING),
    ],
)
def test_the_described_sign_means_ready(wait_for_start: bool, sign: AnyEvent, state: State) -> None:
    starting = live(Described(now=1, alive_time=10, wait_for_start=wait_for_start), Built(now=2))
    assert step(starting, sign)[0].state is state


@pytest.mark.parametrize(
    ("event", "expires_at"),
    [
        (AliveReceived(now=8.0), 18.0),
        (Traffic(now=8.0), 18.0),
        (Extended(now=8.0), 18.0),
        (Extended(now=8.0, alive_time=100), 108.0),
        (Extended(now=8.0, alive_time=1), 13.0),
        (Extended(now=8.0, alive_time=0), None),
        (Answered(now=8.0), 13.0),
    ],
)
def test_life_is_prolonged_and_never_shortened(event: AnyEvent, expires_at: float | None) -> None:
    assert step(RUNNING, event)[0].expires_at == expires_at


@pytest.mark.parametrize(
    ("alive_time", "asked_before", "still_asked", "expires_at"),
    [
        (10, 500, 100, 108.0),
        (10, 500, 1, 18.0),
        (10, 0, 100, 108.0),
        (10, 100, 0, None),
        (0, 0, 30, 38.0),
    ],
)
def test_what_nobody_asks_any_more_is_dropped_down_to_its_own_alive_time(
    alive_time: int, asked_before: int, still_asked: int, expires_at: float | None
) -> None:
    running = live(Described(now=1, alive_time=alive_time, wait_for_start=False), Built(now=2), Answered(now=3))
    held, _ = step(running, Extended(now=4.0, alive_time=asked_before))
    released, effects = step(held, Extended(now=8.0, alive_time=still_asked, exact=True))
    assert released.expires_at == expires_at
    assert effects == (Effect.REPORT,)
    prolonged, _ = step(released, Traffic(now=9.0))
    assert expires_at is None or prolonged.expires_at is not None, "traffic does not make it endless again"


def test_alive_time_zero_lives_until_stopped() -> None:
    ready = live(Described(now=1, alive_time=0, wait_for_start=False), Built(now=2), Answered(now=3))
    assert ready.expires_at is None
    assert step(ready, Tick(now=1e9)) == (ready, ())


@pytest.mark.parametrize(
    ("was", "event", "state", "reason", "effects"),
    [
        (RUNNING, Tick(now=12.9), State.RUNNING, "", ()),
        (RUNNING, Tick(now=13.0), State.STOPPED, "expired", (Effect.REPORT, Effect.STOP)),
        (RUNNING, Tick(now=13.0, busy=True), State.RUNNING, "", ()),
        (UNKNOWN, Tick(now=99.0), State.UNKNOWN, "", ()),
        (STOPPED, Tick(now=9.0 + RETENTION_S), State.REMOVED, "expired", (Effect.REPORT, Effect.REMOVE)),
        (RUNNING, StopAsked(now=4, reason="stopped-by-client"), State.STOPPED, "stopped-by-client",
         (Effect.REPORT, Effect.STOP)),
        (STARTING, StopAsked(now=4, reason="x"), State.REMOVED, "x", (Effect.REPORT, Effect.REMOVE)),
        (RESTARTING, StopAsked(now=4, reason="x"), State.STOPPED, "x", (Effect.REPORT, Effect.STOP)),
        (STOPPED, StopAsked(now=4, reason="x"), State.STOPPED, "expired", ()),
        (STOPPED, RestartAsked(now=10), State.STARTING, "", (Effect.REPORT, Effect.START)),
        (RUNNING, RestartAsked(now=10), State.STARTING, "", (Effect.REPORT, Effect.STOP, Effect.START)),
        (STARTING, RestartAsked(now=10), State.STARTING, "", ()),
        (RUNNING, RemoveAsked(now=4, reason="r"), State.REMOVED, "r", (Effect.REPORT, Effect.REMOVE)),
        (NEW, WorkFailed(now=4, reason="build-failed"), State.FAILED, "build-failed", (Effect.REPORT, Effect.REMOVE)),
        (RESTARTING, WorkFailed(now=4, reason="late"), State.FAILED, "late", (Effect.REPORT, Effect.STOP)),
        (RUNNING, EngineAway(now=4), State.UNKNOWN, "engine-away", (Effect.REPORT,)),
        (STARTING, EngineAway(now=4), State.FAILED, "engine-away", (Effect.REPORT, Effect.REMOVE)),
        (NEW, EngineAway(now=4), State.FETCHING, "", ()),
    ],
)  # fmt: skip
def test_what_is_asked_and_what_time_does(
    was: Instance, event: AnyEvent, state: State, reason: str, effects: tuple[Effect, ...]
) -> None:
    after, done = step(was, event)
    assert (after.state, after.reason, done) == (state, reason, effects)


@pytest.mark.parametrize(
    ("was", "seen", "state", "reason", "effects"),
    [
        (RUNNING, {"condition": Condition.RUNNING}, State.RUNNING, "", ()),
        (RUNNING, {"condition": Condition.PAUSED}, State.PAUSED, "", (Effect.REPORT,)),
        (RUNNING, {"condition": Condition.EXITED, "exit_code": 0}, State.STOPPED, "exited 0", (Effect.REPORT,)),
        (RUNNING, {"condition": Condition.EXITED, "exit_code": 1}, State.FAILED, "exited 1", (Effect.REPORT,)),
        (RUNNING, {"condition": Condition.EXITED, "exit_code": 137, "out_of_memory": True}, State.FAILED,
         "out-of-memory", (Effect.REPORT,)),
        (RUNNING, {"condition": Condition.RUNNING, "out_of_memory": True}, State.RUNNING, "out-of-memory",
         (Effect.REPORT,)),
        (RUNNING, {"condition": Condition.GONE}, State.FAILED, "removed-outside", (Effect.REPORT,)),
        (UNKNOWN, {"condition": Condition.RUNNING}, State.RUNNING, "", (Effect.REPORT,)),
        (UNKNOWN, {"condition": Condition.EXITED, "exit_code": 0}, State.STARTING, "",
         (Effect.REPORT, Effect.START)),
        (UNKNOWN, {"condition": Condition.EXITED, "exit_code": 1}, State.FAILED, "exited 1", (Effect.REPORT,)),
        (UNKNOWN, {"condition": Condition.EXITED, "exit_code": 137, "out_of_memory": True}, State.FAILED,
         "out-of-memory", (Effect.REPORT,)),
        (STARTING, {"condition": Condition.RUNNING}, State.STARTING, "", ()),
        (STARTING, {"condition": Condition.EXITED, "exit_code": 0}, State.FAILED, "exited 0",
         (Effect.REPORT, Effect.REMOVE)),
        (STOPPED, {"condition": Condition.RUNNING}, State.STOPPED, "expired", (Effect.STOP,)),
        (STOPPED, {"condition": Condition.EXITED, "exit_code": 137}, State.STOPPED, "expired", ()),
        (NEW, {"condition": Condition.GONE}, State.FETCHING, "", ()),
    ],
)  # fmt: skip
def test_what_the_engine_shows(
    was: Instance, seen: dict[str, object], state: State, reason: str, effects: tuple[Effect, ...]
) -> None:
    after, done = step(was, Seen(now=6, **seen))  # type: ignore[arg-type]
    assert (after.state, after.reason, done) == (state, reason, effects)


def test_timers_survive_an_engine_that_was_away() -> None:
    back = live(EngineAway(now=5), Seen(now=8, condition=Condition.RUNNING), begin=RUNNING)
    assert back.expires_at == RUNNING.expires_at


@pytest.mark.parametrize("was", [NEW, UNKNOWN, step(RUNNING, RemoveAsked(now=1, reason="r"))[0]])
def test_only_what_ran_can_be_restarted(was: Instance) -> None:
    with pytest.raises(Conflict):
        step(was, RestartAsked(now=9))


def test_a_start_has_a_limit_and_an_interrupted_one_has_it_anew() -> None:
    starting = live(Described(now=1, alive_time=10, wait_for_start=False), Built(now=2))
    told, effects = step(starting, Awaiting(now=4, reason="port 80/tcp does not answer", log=("hello",)))
    assert (told.reason, told.log, effects) == ("port 80/tcp does not answer", ("hello",), (Effect.REPORT,))
    assert step(told, Awaiting(now=5, reason=told.reason, log=told.log)) == (told, ()), "nothing new, nothing to report"
    assert step(told, Tick(now=31, ready_timeout_s=30))[0] == told
    failed, effects = step(told, Tick(now=32, ready_timeout_s=30))
    assert (failed.state, failed.reason, failed.log) == (State.FAILED, "not-ready", ("hello",))
    assert effects == (Effect.REPORT, Effect.REMOVE)
    resumed, _ = step(told, Resumed(now=1000))
    assert step(resumed, Tick(now=1029, ready_timeout_s=30))[0].state is State.STARTING
    ready, _ = step(told, Answered(now=6))
    assert (ready.state, ready.reason, ready.log) == (State.RUNNING, "", ())
