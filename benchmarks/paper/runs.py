"""What was measured: runs of a service, each a few phases as the phone saw them. Plain values, kept as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, get_args

from msgspec import Struct

Mode = Literal["upload", "cold", "warm", "local"]
"""upload: traditional offloading, the archive is sent first; cold, warm: from the store; local: on the phone itself."""
Link = Literal["wifi", "4g"]
Store = Literal["colocated", "lan", "ireland", "us-east", "nearby"]
"""Where the archive lies. nearby: it was published in US East, and a site of the same town has a cached copy."""
MODES: tuple[Mode, ...] = get_args(Mode)
LINKS: tuple[Link, ...] = get_args(Link)
STORES: tuple[Store, ...] = get_args(Store)


class Phase(Struct, frozen=True):
    """A stretch of time on the phone, with the bytes on its link and the processor time of its client meanwhile.

    `waits`: a short question, then nothing until the answer; else the link is in use all the time.
    """

    name: str
    seconds: float
    up_bytes: int = 0
    down_bytes: int = 0
    cpu_s: float = 0.0
    waits: bool = False


class Run(Struct, frozen=True, kw_only=True):
    """One request, from the phone's first byte to its result.

    `edge_ms`: the controller's own `timings_ms` of the start. `slowdown`: of the phone's throttled core, for `local`.
    """

    service: str
    mode: Mode
    phases: tuple[Phase, ...]
    link: Link = "wifi"
    store: Store = "lan"
    slowdown: float = 1.0
    edge_ms: dict[str, float] = {}

    @property
    def total_s(self) -> float:
        return sum(phase.seconds for phase in self.phases)

    @property
    def startup_s(self) -> float:
        """Until the phone has the address of a service that answers: all but the call itself."""
        return sum(phase.seconds for phase in self.phases if phase.name != "call")


def of(
    runs: Iterable[Run],
    *,
    service: str | None = None,
    mode: Mode | None = None,
    link: Link | None = None,
    store: Store | None = None,
) -> list[Run]:
    """The runs that fit all conditions given."""
    return [
        run
        for run in runs
        if (service is None or run.service == service)
        and (mode is None or run.mode == mode)
        and (link is None or run.link == link)
        and (store is None or run.store == store)
    ]


def median_of(runs: Sequence[Run], value: Callable[[Run], float]) -> float:
    """Raises statistics.StatisticsError where nothing was measured."""
    return statistics.median(value(run) for run in runs)


def services_of(runs: Iterable[Run]) -> list[str]:
    """In the order in which they were measured first."""
    return list(dict.fromkeys(run.service for run in runs))


EDGE_PHASES: Mapping[str, tuple[str, ...]] = {
    "find": ("resolve", "place"),
    "fetch": ("fetch", "verify"),
    "build": ("build",),
    "start": ("start", "ready"),
}
"""The controller's phases as the plots show them."""
STACK = ("upload", *EDGE_PHASES, "network", "call")
"""In the order of time, but for `network`: what the start took the phone beyond what the controller worked on it."""


def stacked(run: Run) -> dict[str, float]:
    """Seconds by the names in STACK; they add up to `run.total_s`."""
    seconds = dict.fromkeys(STACK, 0.0)
    for phase in run.phases:
        if phase.name != "start":
            seconds[phase.name] += phase.seconds
            continue
        for name, parts in EDGE_PHASES.items():
            seconds[name] += sum(run.edge_ms.get(part, 0.0) for part in parts) / 1e3
        seconds["network"] += phase.seconds - sum(seconds[name] for name in EDGE_PHASES)
    return seconds
