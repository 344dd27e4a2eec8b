"""All transitions of an instance are in this file, and nowhere else.

`step(instance, event)` returns the next instance and the effects that the caller performs. Nothing here awaits,
reads a clock or knows an engine: every event carries `now` (Unix s), deadlines are absolute. `tests/scenarios/
lifecycle.txt` tells its stories.

    fetching -> building -> starting -> running <-> paused (idle, woken)
    running, paused <-> unknown (engine away; agent back from an end of its own, until it looked)
    unknown -> starting (its engine ended it by going itself), its deadline stands
    running -> paused (its life is over, and it is kept warm), paused -> stopped (then over for good, or evicted)
    running, paused, unknown -> stopped (asked, expired, exited 0) or failed (exited 1, out-of-memory, ...)
    stopped, failed -> starting (restart), -> removed (retention over)
    starting -> failed (not-ready) when its time is over
    a taken port moves no state: what lives goes on with the reason port-taken
    any -> removed (asked); fetching, building, first starting -> failed, and then nothing of it is kept
"""

from __future__ import annotations

import math
from enum import StrEnum

from msgspec import Struct, structs

from agent.runtime import PORT_TAKEN, Condition
from protocol.instances import KEPT_WARM, State
from protocol.problems import Conflict

RETENTION_S = 3600.0
"""A stopped or failed instance keeps its identity this long."""

NOT_READY = "not-ready"
OUT_OF_MEMORY = "out-of-memory"
ENGINE_AWAY = "engine-away"
AGENT_AWAY = "agent-away"

NOTED = frozenset({OUT_OF_MEMORY, PORT_TAKEN})
"""What its owner should know of an instance that goes on."""

ENDED_WITH_ENGINE = frozenset({0, 137, 143, 255})
"""How a service ends that its engine takes along: it obeys (0) or dies of SIGTERM (143), is killed (137), or went with
the whole machine (255)."""

UNBORN = frozenset({State.FETCHING, State.BUILDING})
LIVE = frozenset({State.RUNNING, State.PAUSED, State.UNKNOWN})
ENDED = frozenset({State.STOPPED, State.FAILED})


class Instance(Struct, frozen=True, kw_only=True):
    """`since`: when it entered `state`. `started_at`: when it was first ready, None before. Times in Unix s.

    `alive_time` in s, 0: until stopped. `expires_at` None: never. `keep_s`: how long it is frozen before it is
    stopped, once its life is over. `resuming`: in `starting`, because its engine took it along: its deadline stands.
    """

    instance: str
    state: State = State.FETCHING
    since: float
    alive_time: int = 60
    keep_s: float = 0.0
    wait_for_start: bool = False
    started_at: float | None = None
    expires_at: float | None = None
    reason: str = ""
    log: tuple[str, ...] = ()
    resuming: bool = False

    @property
    def kept_warm(self) -> bool:
        """Its life is over: nobody is promised anything any more."""
        return self.state is State.PAUSED and self.reason == KEPT_WARM


class Effect(StrEnum):
    """All but REPORT act on the engine, in the order given. REMOVE also forgets the instance."""

    STOP = "stop"
    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    REMOVE = "remove"
    REPORT = "report"


class Event(Struct, frozen=True, kw_only=True):
    now: float


class Described(Event, frozen=True, kw_only=True):
    """The archive is here and was read."""

    alive_time: int
    wait_for_start: bool


class Built(Event, frozen=True, kw_only=True):
    """The image is ready; the engine is asked to start it next."""


class Answered(Event, frozen=True, kw_only=True):
    """The service accepts connections."""


class AliveReceived(Event, frozen=True, kw_only=True):
    """The service itself said that it is alive."""


class Traffic(Event, frozen=True, kw_only=True):
    """Bytes went through the port proxy."""


class Idle(Event, frozen=True, kw_only=True):
    """Nobody used it for as long as the operator lets a service run unused."""


class Woken(Event, frozen=True, kw_only=True):
    """Someone connects to it, or sends to it."""


class Extended(Event, frozen=True, kw_only=True):
    """Someone wants it to live at least `alive_time` s from now (None: its own alive time; 0: until stopped).

    `exact`: nobody asks for more any longer, so that what was asked before is dropped.
    """

    alive_time: int | None = None
    exact: bool = False


class KeepAsked(Event, frozen=True, kw_only=True):
    """From now on it is frozen for `keep_s` when its life is over (0: stopped at once)."""

    keep_s: float


class Tick(Event, frozen=True, kw_only=True):
    """Time passed. `busy`: a client's request is known to be in flight. `ready_timeout_s`: how long a start may
    take."""

    busy: bool = False
    ready_timeout_s: float = math.inf


class Awaiting(Event, frozen=True, kw_only=True):
    """The engine started it, and it is not ready yet: `reason` says what is awaited, `log` what it wrote."""

    reason: str
    log: tuple[str, ...] = ()


class PortMoved(Event, frozen=True, kw_only=True):
    """Somebody else has a port of the host that clients reached it at: from now on it has another one."""


class ClockSet(Event, frozen=True, kw_only=True):
    """The machine's clock was set: it shows `now`, `by_s` more (or less) than the time that passed accounts for."""

    by_s: float


class Resumed(Event, frozen=True, kw_only=True):
    """The agent is back after an end of its own: what ran has to be looked at, and a start that it interrupted has all
    its time again."""


class StopAsked(Event, frozen=True, kw_only=True):
    reason: str


class RestartAsked(Event, frozen=True, kw_only=True):
    pass


class RemoveAsked(Event, frozen=True, kw_only=True):
    reason: str


class Seen(Event, frozen=True, kw_only=True):
    """What an inspection of the engine showed."""

    condition: Condition
    exit_code: int | None = None
    out_of_memory: bool = False
    log: tuple[str, ...] = ()


class WorkFailed(Event, frozen=True, kw_only=True):
    """Fetching, building or starting did not succeed."""

    reason: str
    log: tuple[str, ...] = ()


class EngineAway(Event, frozen=True, kw_only=True):
    pass


AnyEvent = (
    Described
    | Built
    | Answered
    | AliveReceived
    | Traffic
    | Idle
    | Woken
    | Extended
    | KeepAsked
    | Tick
    | Awaiting
    | PortMoved
    | ClockSet
    | Resumed
    | StopAsked
    | RestartAsked
    | RemoveAsked
    | Seen
    | WorkFailed
    | EngineAway
)
Step = tuple[Instance, tuple[Effect, ...]]


def step(was: Instance, event: AnyEvent) -> Step:
    """Raises Conflict only for RestartAsked, where the instance never ran or is being removed."""
    if was.state is State.REMOVED:
        if isinstance(event, RestartAsked):
            raise Conflict(f"instance {was.instance} was removed", fix="Start the service anew.")
        return was, ()
    match event:
        case Described():
            return _described(was, event)
        case Built():
            return _enter(was, State.STARTING, event) if was.state is State.BUILDING else (was, ())
        case Answered() | AliveReceived() | Traffic():
            return _life_sign(was, event)
        case Idle():
            return (
                _enter(was, State.PAUSED, event, Effect.PAUSE, reason="idle")
                if was.state is State.RUNNING
                else (was, ())
            )
        case Woken():
            return _woken(was, event) if was.state is State.PAUSED else (was, ())
        case KeepAsked():
            return structs.replace(was, keep_s=event.keep_s), (Effect.REPORT,)
        case Extended():
            alive_time = was.alive_time if event.alive_time is None else event.alive_time
            was = _wanted_again(was, event.now, alive_time)
            return _let_go(was, event.now, alive_time) if event.exact else _extend(was, event.now, alive_time)
        case Tick():
            return _tick(was, event)
        case Awaiting():
            return _awaiting(was, event)
        case PortMoved():
            return _port_moved(was)
        case ClockSet():
            return _clock_set(was, event.by_s)
        case Resumed():
            return _resumed(was, event)
        case StopAsked():
            return _stop(was, event)
        case RestartAsked():
            return _restart(was, event)
        case RemoveAsked():
            return _enter(was, State.REMOVED, event, Effect.REMOVE, reason=event.reason)
        case Seen():
            return _seen(was, event)
        case WorkFailed():
            # A start that the engine's end interrupted did not fail for a reason of its own: judge when it is back.
            return (was, ()) if was.state is State.UNKNOWN else _fail(was, event, event.reason, event.log)
        case EngineAway():
            return _engine_away(was, event)


def expires(now: float, alive_time: int) -> float | None:
    """The absolute deadline of `alive_time` seconds from `now`; None for 0: until stopped."""
    return now + alive_time if alive_time else None


def _described(was: Instance, event: Described) -> Step:
    if was.state is not State.FETCHING:
        return was, ()
    known = structs.replace(was, alive_time=event.alive_time, wait_for_start=event.wait_for_start)
    return _enter(known, State.BUILDING, event)


def _life_sign(was: Instance, event: Answered | AliveReceived | Traffic) -> Step:
    """In `starting` the sign that the description asks for means ready; once running, message or traffic prolong."""
    if was.state is State.STARTING:
        if not isinstance(event, AliveReceived if was.wait_for_start else Answered):
            return was, ()
        started_at = event.now if was.started_at is None else was.started_at
        expires_at = was.expires_at if was.resuming else expires(event.now, was.alive_time)
        ready = structs.replace(was, started_at=started_at, expires_at=expires_at)
        return _enter(ready, State.RUNNING, event, reason=_note(was))
    if was.state not in LIVE or isinstance(event, Answered):
        return was, ()
    return _extend(was, event.now, was.alive_time)


def _extend(was: Instance, now: float, alive_time: int) -> Step:
    """Never shortens a life."""
    if not _has_deadline(was) or was.expires_at is None:
        return was, ()
    wanted = expires(now, alive_time)
    if wanted is not None and wanted <= was.expires_at:
        return was, ()
    return structs.replace(was, expires_at=wanted), (Effect.REPORT,)


def _let_go(was: Instance, now: float, alive_time: int) -> Step:
    """May shorten a life, but not below its own alive time from now."""
    if not _has_deadline(was):
        return was, ()
    # "Until stopped" was the wish of a holder that is gone.
    own = was.alive_time or alive_time
    longest = None if 0 in (own, alive_time) else now + max(own, alive_time)
    kept = structs.replace(was, alive_time=own, expires_at=longest)
    return kept, (() if kept == was else (Effect.REPORT,))


def _has_deadline(was: Instance) -> bool:
    """It runs, or would if its engine had not gone: what it was promised stands."""
    return was.state in LIVE or was.resuming


def _clock_set(was: Instance, by_s: float) -> Step:
    """What was left of a life is left of it still: every time that is remembered moves along."""
    moved = structs.replace(
        was,
        since=was.since + by_s,
        started_at=None if was.started_at is None else was.started_at + by_s,
        expires_at=None if was.expires_at is None else was.expires_at + by_s,
    )
    return moved, (Effect.REPORT,)


def _resumed(was: Instance, event: Resumed) -> Step:
    if was.state is State.STARTING:
        return structs.replace(was, since=event.now), ()
    if was.state in {State.RUNNING, State.PAUSED} and not was.kept_warm:
        return _enter(was, State.UNKNOWN, event, reason=AGENT_AWAY)
    return was, ()


def _wanted_again(was: Instance, now: float, alive_time: int) -> Instance:
    """What was only kept warm has a life once more."""
    return structs.replace(was, reason="idle", expires_at=expires(now, alive_time)) if was.kept_warm else was


def _woken(was: Instance, event: Woken) -> Step:
    return _enter(_wanted_again(was, event.now, was.alive_time), State.RUNNING, event, Effect.RESUME)


def _over(was: Instance, event: Tick) -> Step:
    """Its life is over: it is stopped, or kept warm for a while first."""
    if not was.keep_s or was.kept_warm:
        return _enter(was, State.STOPPED, event, Effect.STOP, reason="expired")
    pause = (Effect.PAUSE,) if was.state is State.RUNNING else ()
    kept = structs.replace(was, expires_at=event.now + was.keep_s)
    return _enter(kept, State.PAUSED, event, *pause, reason=KEPT_WARM)


def _tick(was: Instance, event: Tick) -> Step:
    if was.state in ENDED and event.now >= was.since + RETENTION_S:
        return _enter(was, State.REMOVED, event, Effect.REMOVE, reason=was.reason)
    if was.state is State.STARTING and event.now >= was.since + event.ready_timeout_s:
        return _fail(was, event, NOT_READY, was.log)
    over = _is_over(was, event.now)
    # While the engine is away a container can neither be stopped nor serve: judge again when it is back.
    if was.state in {State.RUNNING, State.PAUSED} and over and not event.busy:
        return _over(was, event)
    return was, ()


def _is_over(was: Instance, now: float) -> bool:
    return was.expires_at is not None and now >= was.expires_at


def _awaiting(was: Instance, event: Awaiting) -> Step:
    told = was if was.reason in NOTED else structs.replace(was, reason=event.reason, log=event.log)
    return (was, ()) if was.state is not State.STARTING or told == was else (told, (Effect.REPORT,))


def _port_moved(was: Instance) -> Step:
    """What ended keeps the reason of its end, and what is new has told nobody its ports yet."""
    if _is_new(was) or was.state in ENDED or was.kept_warm:
        return was, (Effect.REPORT,)
    return structs.replace(was, reason=PORT_TAKEN), (Effect.REPORT,)


def _note(was: Instance) -> str:
    return was.reason if was.reason in NOTED else ""


def _stop(was: Instance, event: StopAsked) -> Step:
    if was.state in ENDED:
        return was, ()
    if _is_new(was):
        return _enter(was, State.REMOVED, event, Effect.REMOVE, reason=event.reason)
    return _enter(was, State.STOPPED, event, Effect.STOP, reason=event.reason)


def _restart(was: Instance, event: RestartAsked) -> Step:
    if was.state in UNBORN or was.state is State.UNKNOWN:
        raise Conflict(
            f"instance {was.instance} is {was.state} and cannot be restarted now", fix="Try again when it runs."
        )
    if was.state is State.STARTING:
        return was, ()
    stop = () if was.state in ENDED else (Effect.STOP,)
    return _enter(was, State.STARTING, event, *stop, Effect.START)


def _seen(was: Instance, event: Seen) -> Step:
    if was.state in UNBORN:
        return was, ()
    if was.state in ENDED:
        # It was stopped while the engine was away, or by a call that failed half-way: what is stopped stays stopped.
        alive = event.condition in {Condition.RUNNING, Condition.PAUSED}
        return was, ((Effect.STOP,) if alive else ())
    if event.condition is Condition.GONE:
        return _fail(was, event, "removed-outside", event.log)
    if event.condition is Condition.EXITED:
        return _exited(was, event)
    return _seen_alive(was, event)


def _seen_alive(was: Instance, event: Seen) -> Step:
    if event.out_of_memory and was.reason != OUT_OF_MEMORY:
        # Only a child process died: the service may go on, and its owner should know.
        was = structs.replace(was, reason=OUT_OF_MEMORY)
        if was.state not in {State.UNKNOWN, State.PAUSED}:
            return was, (Effect.REPORT,)
    if was.state is State.STARTING:
        return was, ()
    target = State.PAUSED if event.condition is Condition.PAUSED else State.RUNNING
    if target is was.state:
        return was, ()
    return _enter(was, target, event, reason=_note(was))


def _exited(was: Instance, event: Seen) -> Step:
    if was.kept_warm:
        return _enter(was, State.STOPPED, event, reason="expired")
    if was.state is State.UNKNOWN and event.exit_code in ENDED_WITH_ENGINE and not event.out_of_memory:
        return _taken_along(was, event)
    reason = OUT_OF_MEMORY if event.out_of_memory else f"exited {event.exit_code}"
    if event.exit_code == 0 and not event.out_of_memory and not _is_new(was):
        return _enter(was, State.STOPPED, event, reason=reason, log=event.log)
    return _fail(was, event, reason, event.log)


def _taken_along(was: Instance, event: Seen) -> Step:
    """It ran when the engine went, and ended with it: it goes on, unless its time is over by now."""
    if _is_over(was, event.now):
        return _enter(was, State.STOPPED, event, reason="expired")
    starting, effects = _enter(was, State.STARTING, event, Effect.START, reason=was.reason)
    return structs.replace(starting, resuming=True), effects


def _fail(was: Instance, event: AnyEvent, reason: str, log: tuple[str, ...]) -> Step:
    if was.state in ENDED:
        return was, ()
    cleanup = (Effect.REMOVE,) if _is_new(was) else ()
    # A restart that did not become ready may still have a process.
    if was.state is State.STARTING and not cleanup:
        cleanup = (Effect.STOP,)
    return _enter(was, State.FAILED, event, *cleanup, reason=reason, log=log)


def _engine_away(was: Instance, event: EngineAway) -> Step:
    if was.kept_warm:
        return _enter(was, State.STOPPED, event, reason="expired")  # nobody is promised anything any more
    known = was.state is State.UNKNOWN and was.reason == ENGINE_AWAY
    if _has_deadline(was) and not known:
        return _enter(was, State.UNKNOWN, event, reason=ENGINE_AWAY)
    if was.state is State.STARTING:
        return _fail(was, event, ENGINE_AWAY, ())
    return was, ()


def _is_new(was: Instance) -> bool:
    """True while the first start is under way: there is nothing worth keeping yet."""
    return was.started_at is None


def _enter(
    was: Instance, state: State, event: AnyEvent, *effects: Effect, reason: str = "", log: tuple[str, ...] = ()
) -> Step:
    if state in {State.STOPPED, State.FAILED, State.REMOVED}:
        was = structs.replace(was, expires_at=None)
    entered = structs.replace(was, state=state, since=event.now, reason=reason, log=log, resuming=False)
    return entered, (Effect.REPORT, *effects)
