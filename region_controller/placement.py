"""Which agent runs a service. Pure: the same view of the region always gives the same answer, with its reason.

Filters: heard of lately, runtime, labels, memory. Among those that pass: warm > paused > built > cached > the rest; of
equals the less busy one, then the one with more free memory, then the first by node id.
A warm instance needs no memory, and is only ever shared by requests of the same flavour (parameters and variant).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from msgspec import Struct

from protocol.causes import Cause
from protocol.service import Kind
from region_controller.refusals import Refusal


class Warmth(IntEnum):
    """How much of a start is done already. Lower is better."""

    WARM = 0
    PAUSED = 1
    BUILT = 2
    CACHED = 3
    COLD = 4


class Need(Struct, frozen=True, kw_only=True):
    """What a request asks of an agent. `mem` in MB. With `fresh`, running instances are not reused."""

    digest: str
    mem: int
    kind: Kind | None = None
    labels: dict[str, str] = {}
    flavour: str = ""
    fresh: bool = False


class Running(Struct, frozen=True):
    """An instance that answers now, or as soon as the first byte wakes it (`paused`). `expires_at` in Unix s, None:
    until stopped. `flavour` None: unknown."""

    instance: str
    digest: str
    flavour: str | None
    expires_at: float | None
    paused: bool = False


class AgentState(Struct, frozen=True, kw_only=True):
    """An agent as placement sees it. `memory_free` in MB is what is left after all reservations.

    `load`: processes that want to run, for each of its cores. `silent_s`: seconds since it was last heard; None if its
    link is down. `suspect_s`: how long is too long.
    """

    node: str
    runtimes: tuple[str, ...]
    labels: dict[str, str]
    memory_total: int
    memory_free: int
    cached: frozenset[str] = frozenset()
    built: frozenset[str] = frozenset()
    running: tuple[Running, ...] = ()
    load: float = 0.0
    silent_s: float | None = 0.0
    suspect_s: float = 6.0


class Placement(Struct, frozen=True, kw_only=True):
    """`instance` is set when a running one is shared."""

    node: str
    warmth: Warmth
    why: str
    instance: str | None = None


class Nobody(Struct, frozen=True):
    """Why each agent cannot, by node id."""

    reasons: dict[str, Refusal]


def choose(need: Need, agents: Sequence[AgentState], now: float) -> Placement | Nobody:
    """The best agent for `need`, or the reason of each."""
    reasons: dict[str, Refusal] = {}
    fit: list[tuple[Warmth, int, int, str, Running | None]] = []
    for agent in agents:
        shared = None if need.fresh else _shareable(need, agent, now)
        reason = _unreachable(agent) or _unfit(need, agent) or (None if shared else _no_memory(need, agent))
        if reason:
            reasons[agent.node] = reason
        else:
            warmth = warmth_of(need.digest, agent, shared)
            fit.append((warmth, int(agent.load), -agent.memory_free, agent.node, shared))
    if not fit:
        return Nobody(reasons)
    warmth, busy, negative_free, node, shared = min(fit, key=lambda f: f[:4])
    why = _WHY[warmth].format(agent=node[:8], free=-negative_free)
    if any(f[0] == warmth and f[1] > busy and f[2:4] < (negative_free, node) for f in fit):
        why = _WHY_QUIET[warmth].format(agent=node[:8], free=-negative_free)
    if len(agents) > 1:
        why += f"; best of {len(fit)} fit among {len(agents)} agents"
    return Placement(node=node, warmth=warmth, why=why, instance=shared.instance if shared else None)


_WHY = {
    Warmth.WARM: "it runs already on agent {agent}",
    Warmth.PAUSED: "it is frozen on agent {agent} and wakes with the first byte",
    Warmth.BUILT: "agent {agent} has it built",
    Warmth.CACHED: "agent {agent} has its archive",
    Warmth.COLD: "agent {agent} has the most free memory ({free} MB)",
}
_WHY_QUIET = {
    **{warmth: f"{why} and is less busy than others that have" for warmth, why in _WHY.items()},
    Warmth.COLD: "agent {agent} is the least busy that has room ({free} MB)",
}


def warmth_of(digest: str, agent: AgentState, shared: Running | None) -> Warmth:
    if shared is not None:
        return Warmth.PAUSED if shared.paused else Warmth.WARM
    if digest in agent.built:
        return Warmth.BUILT
    return Warmth.CACHED if digest in agent.cached else Warmth.COLD


def _shareable(need: Need, agent: AgentState, now: float) -> Running | None:
    """The fitting instance that is awake, of those the one that lives longest."""
    fitting = [
        r
        for r in agent.running
        if r.digest == need.digest and r.flavour == need.flavour and (r.expires_at is None or r.expires_at > now)
    ]
    return min(fitting, key=lambda r: (r.paused, -_life(r), r.instance), default=None)


def _life(running: Running) -> float:
    return float("inf") if running.expires_at is None else running.expires_at


def _unreachable(agent: AgentState) -> Refusal | None:
    if agent.silent_s is None:
        return Refusal(Cause.AWAY, "its link is down")
    if agent.silent_s > agent.suspect_s:
        return Refusal(Cause.AWAY, f"not heard for {agent.silent_s:.0f} s")
    return None


def _unfit(need: Need, agent: AgentState) -> Refusal | None:
    if need.kind is not None and not can_run(need.kind, agent.runtimes):
        has = ", ".join(agent.runtimes) or "none"
        return Refusal(Cause.RUNTIME, f"no runtime for {need.kind} (it has {has})")
    missing = {k: v for k, v in need.labels.items() if agent.labels.get(k) != v}
    if missing:
        labels = ", ".join(f"{k}={v}" for k, v in sorted(missing.items()))
        return Refusal(Cause.LABEL, f"label {labels} is required")
    return None


def can_run(kind: Kind, runtimes: Sequence[str]) -> bool:
    """Agents name the runtimes they have: `docker`, `wasm`, or the kind itself; `memory` pretends to run anything."""
    return any(name in runtimes for name in (kind, kind.partition("_")[0], "memory"))


def _no_memory(need: Need, agent: AgentState) -> Refusal | None:
    if need.mem > agent.memory_total:
        return Refusal(Cause.MEMORY, f"needs {need.mem} MB, the agent offers {agent.memory_total} MB in all")
    if need.mem > agent.memory_free:
        return Refusal(Cause.MEMORY, f"needs {need.mem} MB, {agent.memory_free} MB are free")
    return None
