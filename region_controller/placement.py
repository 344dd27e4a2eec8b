"""Which agent runs a service. Pure: the same view of the region always gives the same answer, with its reason.

Filters: heard of lately, runtime, labels, distance, memory. Among those that pass: warm > paused > built > cached > the
rest; of equals whom the service's strategy prefers (see `preferences`), then the first by node id.
A warm instance needs no memory, and is only ever shared by requests of the same flavour (parameters and variant).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from protocol.causes import Cause
from protocol.decisions import MAX_PASSED_OVER
from protocol.service import Kind
from region_controller.agents import AgentState, Need, Running, Warmth
from region_controller.preferences import CRITERIA
from region_controller.refusals import Refusal

MAX_BETTER_TOLD = 2
"""How many agents that had more of the service, but cannot take it, the reason in words names."""


class Rival(Struct, frozen=True):
    """An agent that did not get the service: how far along it is with it, and why it lost. `cause`: why it cannot at
    all, None if another was merely better."""

    node: str
    warmth: Warmth
    why: str
    cause: Cause | None = None


class Placement(Struct, frozen=True, kw_only=True):
    """`instance` is set when a running one is shared. `rivals`: at most MAX_PASSED_OVER, who had most of the service
    first; `more`: how many further ones there were."""

    node: str
    warmth: Warmth
    why: str
    instance: str | None = None
    rivals: tuple[Rival, ...] = ()
    more: int = 0


class Nobody(Struct, frozen=True):
    """Why each agent cannot, by node id; `rivals` and `more` as in `Placement`."""

    reasons: dict[str, Refusal]
    rivals: tuple[Rival, ...] = ()
    more: int = 0


class _Fit(Struct, frozen=True):
    agent: AgentState
    warmth: Warmth
    shared: Running | None
    preference: tuple[float, ...]

    @property
    def rank(self) -> tuple[Warmth, tuple[float, ...], str]:
        return self.warmth, self.preference, self.agent.node


class _Unfit(Struct, frozen=True):
    node: str
    warmth: Warmth
    refusal: Refusal


def choose(
    need: Need, agents: Sequence[AgentState], now: float, refused: Mapping[str, Refusal] | None = None
) -> Placement | Nobody:
    """The best agent for `need`, or the reason of each. `refused`: those that were asked already, and could not."""
    fit: list[_Fit] = []
    unfit: list[_Unfit] = []
    for agent in agents:
        shared = None if need.fresh else _shareable(need, agent, now)
        warmth = warmth_of(need.digest, agent, shared)
        refusal = (refused or {}).get(agent.node) or refusal_of(need, agent, shared)
        if refusal is None:
            preference = tuple(criterion.measure(need, agent) for criterion in CRITERIA[need.strategy])
            fit.append(_Fit(agent, warmth, shared, preference))
        else:
            unfit.append(_Unfit(agent.node, warmth, refusal))
    if not fit:
        reasons = {**(refused or {}), **{one.node: one.refusal for one in unfit}}
        rivals = _foremost(_refused(one) for one in unfit)
        return Nobody(reasons, rivals, len(unfit) - len(rivals))
    best = min(fit, key=lambda one: one.rank)
    rivals = _foremost([*map(_refused, unfit), *(_outdone(need, one, best) for one in fit if one is not best)])
    return Placement(
        node=best.agent.node,
        warmth=best.warmth,
        why=_why(need, best, fit, unfit),
        instance=best.shared.instance if best.shared else None,
        rivals=rivals,
        more=len(agents) - 1 - len(rivals),
    )


# --- who cannot -------------------------------------------------------------------------------------------------------


def refusal_of(need: Need, agent: AgentState, shared: Running | None) -> Refusal | None:
    """Why the agent cannot, None if it can. `shared`: the instance that would be shared, which needs no memory."""
    return _unreachable(agent) or _unfit(need, agent) or (None if shared else _no_memory(need, agent))


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
    if need.within_ms is not None and agent.rtt_ms is not None and agent.rtt_ms > need.within_ms:
        return Refusal(Cause.LATENCY, f"it is {agent.rtt_ms:.3g} ms away, {need.within_ms:.3g} ms are allowed")
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


# --- how far along ----------------------------------------------------------------------------------------------------


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


# --- why --------------------------------------------------------------------------------------------------------------

_TAKEN = {
    Warmth.WARM: "it runs already on agent {agent}",
    Warmth.PAUSED: "it is frozen on agent {agent} and wakes with the first byte",
    Warmth.BUILT: "agent {agent} has it built",
    Warmth.CACHED: "agent {agent} has its archive",
    Warmth.COLD: "agent {agent} has room for it ({free} MB free)",
}
_HAS = {
    Warmth.WARM: "runs it",
    Warmth.PAUSED: "has it frozen",
    Warmth.BUILT: "has it built",
    Warmth.CACHED: "has its archive",
}
_HAS_LESS = {
    Warmth.PAUSED: "has it frozen, not awake",
    Warmth.BUILT: "has it built, but does not run it",
    Warmth.CACHED: "has only its archive",
    Warmth.COLD: "has nothing of it",
}


def _why(need: Need, best: _Fit, fit: Sequence[_Fit], unfit: Sequence[_Unfit]) -> str:
    """What the chosen agent has, what told it from the next of its class, and who has more but cannot."""
    why = _TAKEN[best.warmth].format(agent=best.agent.node[:8], free=best.agent.memory_free)
    equals = [one for one in fit if one is not best and one.warmth == best.warmth]
    if equals:
        why += f" and {_told_apart(need, best, min(equals, key=lambda one: one.rank))[0]}"
    if len(fit) + len(unfit) > 1:
        why += f"; best of {len(fit)} fit among {len(fit) + len(unfit)} agents"
    better = sorted((one for one in unfit if one.warmth < best.warmth), key=lambda one: (one.warmth, one.node))
    for one in better[:MAX_BETTER_TOLD]:
        why += f"; agent {one.node[:8]} {_HAS[one.warmth]}, but cannot: {one.refusal.detail}"
    if left := len(better) - MAX_BETTER_TOLD:
        why += f"; and {left} more that had more of it cannot" if left > 0 else ""
    return why


def _told_apart(need: Need, best: _Fit, other: _Fit) -> tuple[str, str]:
    """In what two of one class differ first: what is said of the better one, and of the other."""
    for criterion, ours, theirs in zip(CRITERIA[need.strategy], best.preference, other.preference, strict=True):
        if ours != theirs:
            return criterion.won, criterion.lost(need, other.agent)
    return "is the first by name", "is its equal, and comes later by name"


def _outdone(need: Need, one: _Fit, best: _Fit) -> Rival:
    lost = _HAS_LESS[one.warmth] if one.warmth > best.warmth else _told_apart(need, best, one)[1]
    return Rival(one.agent.node, one.warmth, lost)


def _refused(one: _Unfit) -> Rival:
    return Rival(one.node, one.warmth, one.refusal.detail, one.refusal.cause)


def _foremost(rivals: Iterable[Rival]) -> tuple[Rival, ...]:
    return tuple(heapq.nsmallest(MAX_PASSED_OVER, rivals, key=lambda r: (r.warmth, r.cause is None, r.node)))
