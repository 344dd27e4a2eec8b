"""What placement weighs: a request's needs on one side, agents as the controller sees them on the other. Pure."""

from __future__ import annotations

from enum import IntEnum

from msgspec import Struct

from protocol.service import Kind, Strategy


class Warmth(IntEnum):
    """How much of a start is done already. Lower is better."""

    WARM = 0
    PAUSED = 1
    BUILT = 2
    CACHED = 3
    COLD = 4


class Need(Struct, frozen=True, kw_only=True):
    """What a request asks of an agent. `mem` in MB. With `fresh`, running instances are not reused. `within_ms`: the
    longest round trip from the controller, None: any."""

    digest: str
    mem: int
    kind: Kind | None = None
    labels: dict[str, str] = {}
    flavour: str = ""
    fresh: bool = False
    strategy: Strategy = "spread"
    within_ms: float | None = None


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
    link is down. `suspect_s`: how long is too long. `rtt_ms`: the round trip to it, None if nothing measures it: then
    it counts as near, being of the same site.
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
    rtt_ms: float | None = None
