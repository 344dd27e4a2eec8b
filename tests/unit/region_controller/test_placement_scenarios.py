"""`tests/scenarios/placement.txt`, told and checked."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.service import Kind, Strategy
from region_controller.agents import AgentState, Need, Running
from region_controller.placement import Nobody, Placement, choose
from tests.stories import stories

STORIES = stories("placement.txt")
NOW = 1000.0


@pytest.mark.parametrize(("title", "lines"), STORIES, ids=lambda part: part if isinstance(part, str) else "")
def test_story(title: str, lines: list[str]) -> None:
    agents: list[AgentState] = []
    answers: list[str] = []
    expected: list[str] = []
    for line in lines:
        if line.startswith("agent "):
            agents.append(an_agent(line))
        elif line.startswith("want "):
            answers += tell(choose(a_need(line), agents, NOW)).splitlines()
        else:
            expected.append(line)
    assert answers, title
    assert answers == expected


def tell(choice: Placement | Nobody) -> str:
    if isinstance(choice, Nobody):
        return "\n".join(["-> nobody", *(f"{node}: {why.detail}" for node, why in choice.reasons.items())])
    shared = f", shares {choice.instance}" if choice.instance else ""
    rivals = [f"{rival.node}: {rival.why}" for rival in choice.rivals]
    return "\n".join([f"-> {choice.node}, {choice.warmth.name.lower()}{shared}: {choice.why}", *rivals])


def an_agent(line: str) -> AgentState:
    _, node, memory, *words = line.split()
    free, total = memory.split("/")
    has: dict[str, Any] = {"labels": {}, "cached": set(), "built": set(), "running": [], "runtimes": []}
    while words:
        word = words.pop(0)
        if word in ("docker", "wasm"):
            has["runtimes"].append(word)
        elif word == "label":
            key, value = words.pop(0).split("=")
            has["labels"][key] = value
        elif word in ("cached", "built"):
            has[word].add(words.pop(0))
        elif word == "running":
            has["running"].append(a_running(node, words))
        elif word == "load":
            has["load"] = float(words.pop(0))
        elif word == "rtt":
            has["rtt_ms"] = float(words.pop(0))
        elif word == "frozen":
            has["running"].append(Running(f"{node}-{words[0]}", words.pop(0), "", None, paused=True))
        elif word == "silent":
            has["silent_s"] = float(words.pop(0))
        else:
            assert word == "down"
            has["silent_s"] = None
    return AgentState(
        node=node,
        memory_total=int(total),
        memory_free=int(free),
        runtimes=tuple(has.pop("runtimes")) or ("docker",),
        cached=frozenset(has.pop("cached")),
        built=frozenset(has.pop("built")),
        running=tuple(has.pop("running")),
        **has,
    )


def a_running(node: str, words: list[str]) -> Running:
    service = words.pop(0)
    flavour = words.pop(0) if words[:1] == ["customised"] else ""
    expires_at = None
    if words[:1] == ["for"]:
        expires_at = NOW + float(words[1])
        del words[:3]
    return Running(f"{node}-{service}", service, flavour, expires_at)


def a_need(line: str) -> Need:
    _, service, mem, *words = line.split()
    kind: Kind = "wasm_module" if "wasm" in words else "docker_container"
    labels = dict(words[i + 1].split("=") for i, w in enumerate(words) if w == "label")
    strategies: tuple[Strategy, ...] = ("spread", "colocate", "nearest")
    return Need(
        digest=service,
        mem=int(mem),
        kind=kind,
        labels=labels,
        flavour="customised" if "customised" in words else "",
        fresh="fresh" in words,
        strategy=next((s for s in strategies if s in words), "spread"),
        within_ms=float(words[words.index("within") + 1]) if "within" in words else None,
    )
