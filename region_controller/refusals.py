"""What nobody could do, and what helps: the refusals of agents and regions, summed up for who asked. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct

from protocol.causes import Cause
from protocol.identifiers import is_node_id
from protocol.problems import NoCapacity, Overloaded, Problem, RelaxationRefused, Unavailable
from protocol.records import ServiceRecord

RETRY_AFTER_S = 5
"""Where nobody knows better."""
MAX_RETRY_AFTER_S = 3600
MAX_ASKED = 256

_FIXES: Mapping[Cause, str] = {
    Cause.CONTENT: "Start a node that has the archive, or publish it again with `cornerstore publish`.",
    Cause.RUNTIME: "Install Docker on an agent's machine and start it; its node's `no-docker` warning says what is "
    "missing.",
    Cause.ENGINE: "Start the container engine again (systemctl start docker).",
    Cause.LABEL: "Set the label under [agent.labels] in config.toml of a machine that fits.",
    Cause.POLICY: "Allow it under [controller] in config.toml of a region's controller: `allow_capabilities`, "
    "`max_processes`.",
    Cause.CONFINEMENT: "Allow it under [agent.docker] in config.toml of a machine that may run it: "
    "`allow_capabilities`, `max_processes`.",
    Cause.ACCURACY: "Name a variant (`--variant`, `variant`), or let its developer publish a more accurate one.",
    Cause.LATENCY: "Add an agent nearer to who asks, or let its developer allow more (`max_latency_ms`). A round trip "
    "that is not measured yet is known in a while.",
    Cause.MEMORY: "Stop something, or let an agent offer more (`memory_mb` under [agent] in config.toml).",
    Cause.DISK: "Free disk space on the agents' machines, or raise `quota_gb` under [content] there.",
    Cause.AWAY: "Ask again in a moment: an agent or a region that lost its link dials again.",
    Cause.BUSY: "Ask again after the time that `Retry-After` names.",
    Cause.EMPTY: "Add an agent with `cornerstore bootstrap invite`.",
}


class Refusal(Struct, frozen=True):
    """Why one host does not take a service. `detail` is for people."""

    cause: Cause
    detail: str


def retry_after_of(seconds: float | None) -> int:
    """Whole seconds, rounded up: who comes back then finds what was promised."""
    return RETRY_AFTER_S if seconds is None else math.ceil(min(MAX_RETRY_AFTER_S, max(1.0, seconds)))


def room_in_s(problem: Problem) -> float | None:
    """When another region expects to have room, as its answer says; None if it does not know."""
    said = problem.retry_after if isinstance(problem, Overloaded) else problem.extra.get("room_in_s")
    return max(0.0, float(said)) if isinstance(said, int | float) and math.isfinite(said) else None


def causes_in(problem: Problem) -> set[Cause]:
    """The causes that another region's answer names. It comes from the network: what is not understood is left out."""
    named = problem.extra.get("causes")
    if not isinstance(named, list):
        return set()
    return {Cause(c) for c in named if isinstance(c, str) and c in set(Cause)}


def asked_by(problem: Problem) -> set[str]:
    """Node ids of the controllers that another region asked in vain. What is none is left out."""
    named = problem.extra.get("asked")
    return {n for n in named[:MAX_ASKED] if isinstance(n, str) and is_node_id(n)} if isinstance(named, list) else set()


def summed_up(
    service: ServiceRecord,
    regions: Mapping[str, str],
    causes: Iterable[Cause],
    mem: int,
    *,
    room_s: Iterable[float | None] = (),
) -> Unavailable:
    """The answer where no region hosts `service`: Unavailable if only the archive is missing, RelaxationRefused if all
    that is missing is somebody's leave, else NoCapacity.

    A region without agents has no say while others refuse for reasons of their own. `mem`: what was asked for, in MB.
    `room_s`: when each region expects to have room, None if it cannot tell.
    """
    said = set(causes)
    told = sorted(said - {Cause.EMPTY} or said, key=list(Cause).index)
    about: dict[str, Any] = {
        "regions": dict(regions),
        "causes": [str(cause) for cause in told],
        "fix": " ".join(_FIXES[cause] for cause in told) or "Ask again later.",
    }
    first_s = min((s for s in room_s if s is not None), default=None)
    again = {**about, "retry_after": retry_after_of(first_s)}
    if first_s is not None:
        again["room_in_s"] = round(first_s, 1)
    if told == [Cause.CONTENT]:
        return Unavailable(f"nobody who has the archive of {service.id} ({service.name}) answers", **again)
    counted = "1 region" if len(regions) == 1 else f"{len(regions)} regions"
    if told and set(told) <= {Cause.POLICY, Cause.CONFINEMENT}:
        return RelaxationRefused(f"no agent in {counted} may run {service.id} as it asks to be run", **about)
    return NoCapacity(f"no agent in {counted} can host {service.id} ({mem} MB) now", **again)
