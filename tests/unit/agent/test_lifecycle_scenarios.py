"""`tests/scenarios/lifecycle.txt`, told and checked."""

from __future__ import annotations

import math

import pytest

from agent import lifecycle
from agent.lifecycle import AnyEvent, Effect, Instance, step
from agent.runtime import Condition
from tests.stories import stories

STORIES = stories("lifecycle.txt")
SIGNS = {
    "built": lifecycle.Built,
    "answered": lifecycle.Answered,
    "alive": lifecycle.AliveReceived,
    "traffic": lifecycle.Traffic,
    "idle": lifecycle.Idle,
    "woken": lifecycle.Woken,
    "restart": lifecycle.RestartAsked,
    "engine-away": lifecycle.EngineAway,
    "agent-back": lifecycle.Resumed,
    "port-taken": lifecycle.PortMoved,
}


@pytest.mark.parametrize(("title", "lines"), STORIES, ids=lambda part: part if isinstance(part, str) else "")
def test_story(title: str, lines: list[str]) -> None:
    instance = Instance(instance="one", since=0.0)
    told: list[Effect] = []
    arrows = 0
    for line in lines:
        if line.startswith("->"):
            assert line == tell(instance, told), title
            told, arrows = [], arrows + 1
            continue
        for event in events(line):
            instance, effects = step(instance, event)
            told += [effect for effect in effects if effect is not Effect.REPORT]
    assert arrows, title


def test_every_event_has_a_story() -> None:
    told = {type(event) for _, lines in STORIES for line in lines if line[0] != "-" for event in events(line)}
    assert told == set(AnyEvent.__args__) - {lifecycle.Awaiting}, "what is awaited changes no state"


def tell(instance: Instance, effects: list[Effect]) -> str:
    reason = f" ({instance.reason})" if instance.reason else ""
    until = f" until {instance.expires_at:g}" if instance.expires_at is not None else ""
    return f"-> {instance.state}{reason}{until}" + (f": {', '.join(effects)}" if effects else "")


def events(line: str) -> list[AnyEvent]:
    second, name, *words = line.split()
    now = float(second)
    match name, words:
        case "asked", []:
            return []
        case "runs", ["alive", alive_time]:
            steps = (f"described alive {alive_time}", "built", "answered")
            return [event for told in steps for event in events(f"{second} {told}")]
        case "described", ["alive", alive_time, *waits]:
            return [lifecycle.Described(now=now, alive_time=int(alive_time), wait_for_start=waits == ["waits"])]
        case "extended", [alive_time, *exact]:
            return [lifecycle.Extended(now=now, alive_time=int(alive_time), exact=exact == ["exact"])]
        case "kept", [keep_s]:
            return [lifecycle.KeepAsked(now=now, keep_s=float(keep_s))]
        case "tick", _:
            limit = float(words[-1]) if "limit" in words else math.inf
            return [lifecycle.Tick(now=now, busy="busy" in words, ready_timeout_s=limit)]
        case "seen", ["exited" | "oom" as how, code]:
            ended = Condition.EXITED
            return [lifecycle.Seen(now=now, condition=ended, exit_code=int(code), out_of_memory=how == "oom")]
        case "seen", [condition]:
            return [lifecycle.Seen(now=now, condition=Condition(condition))]
        case "stop", [reason]:
            return [lifecycle.StopAsked(now=now, reason=reason)]
        case "remove", [reason]:
            return [lifecycle.RemoveAsked(now=now, reason=reason)]
        case "failed", [reason]:
            return [lifecycle.WorkFailed(now=now, reason=reason)]
        case "clock", [by_s]:
            return [lifecycle.ClockSet(now=now, by_s=float(by_s))]
        case _:
            return [SIGNS[name](now=now)]
