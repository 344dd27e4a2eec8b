"""What tells agents of one class apart, by the `strategy` of a service's Placement policy. Pure.

    spread     the less busy, then who runs fewer instances of it, then who has more memory free
    colocate   the less busy, then who runs more already, then who has just enough memory: the others stay whole
    nearest    the shorter round trip, then the less busy, then who has more memory free

Busy counts in whole processes that want to run for each core: an agent that still has a core free is as good as an idle
one. Round trips count in doublings of RTT_STEP_MS: a measured one trembles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from protocol.service import Strategy
from region_controller.agents import AgentState, Need

RTT_STEP_MS = 1.0
_NOT_MEASURED = 64


class Criterion(NamedTuple):
    """Less is better. `won` is said of the better one; `lost` of the other."""

    measure: Callable[[Need, AgentState], float]
    won: str
    lost: Callable[[Need, AgentState], str]


def _copies(need: Need, agent: AgentState) -> int:
    return sum(running.digest == need.digest for running in agent.running)


def _distance(_: Need, agent: AgentState) -> int:
    if agent.rtt_ms is None:
        return _NOT_MEASURED
    return max(0, math.frexp(agent.rtt_ms / RTT_STEP_MS)[1])


def _how_far(_: Need, agent: AgentState) -> str:
    return "is at an unknown distance" if agent.rtt_ms is None else f"is farther ({agent.rtt_ms:.3g} ms)"


_LESS_BUSY = Criterion(
    lambda _, agent: int(agent.load),
    "is less busy",
    lambda _, agent: f"is busier (load {agent.load:.3g} for each core)",
)
_FEWER_COPIES = Criterion(_copies, "runs fewer of it", lambda need, agent: f"runs {_copies(need, agent)} of it already")
_MORE_FREE = Criterion(
    lambda _, agent: -agent.memory_free,
    "has more memory free",
    lambda _, agent: f"has less memory free ({agent.memory_free} MB)",
)
_FULLER = Criterion(
    lambda _, agent: -len(agent.running),
    "runs more already",
    lambda _, agent: f"runs fewer services ({len(agent.running)})",
)
_TIGHTER = Criterion(
    lambda _, agent: agent.memory_free,
    "has less memory to spare",
    lambda _, agent: f"has more memory free ({agent.memory_free} MB), for something larger",
)
_NEARER = Criterion(_distance, "is nearer", _how_far)

CRITERIA: Mapping[Strategy, tuple[Criterion, ...]] = {
    "spread": (_LESS_BUSY, _FEWER_COPIES, _MORE_FREE),
    "colocate": (_LESS_BUSY, _FULLER, _TIGHTER),
    "nearest": (_NEARER, _LESS_BUSY, _MORE_FREE),
}
