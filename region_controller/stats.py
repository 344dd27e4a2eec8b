"""What the controller counts, for `/metrics`."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping

from msgspec import Struct

from protocol.instances import PHASES

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Histogram(Struct, frozen=True):
    """`counts`: of each bucket of BUCKETS_S, not of those below it; the last is of what took longer. `total_s`: sum."""

    counts: tuple[int, ...] = (0,) * (len(BUCKETS_S) + 1)
    total_s: float = 0.0

    def with_one(self, seconds: float) -> Histogram:
        at = bisect_left(BUCKETS_S, seconds)
        return Histogram((*self.counts[:at], self.counts[at] + 1, *self.counts[at + 1 :]), self.total_s + seconds)


class ControllerStats(Struct, frozen=True, kw_only=True):
    """`starts` by kind: cold, warm, joined, handed_off, received, failed. `phases`: how long they took.

    `instances` by state. Memory in MB. `refused`: requests for services that were too many. `queued`: starts that wait
    now; `overloaded`: those that could not be started in time.
    """

    starts: dict[str, int]
    phases: dict[str, Histogram]
    agents: int
    memory_total: int
    memory_free: int
    instances: dict[str, int]
    leases: int
    refused: int
    queued: int
    overloaded: int


class Stats:
    """Counters since the controller came up."""

    def __init__(self) -> None:
        self.starts: Counter[str] = Counter(cold=0, warm=0, joined=0, handed_off=0, received=0, failed=0)
        self._phases = dict.fromkeys(PHASES, Histogram())

    def started(self, kind: str, timings_ms: Mapping[str, float]) -> None:
        self.starts[kind] += 1
        for phase in PHASES:
            if milliseconds := timings_ms.get(phase):
                self._phases[phase] = self._phases[phase].with_one(milliseconds / 1000)

    @property
    def phases(self) -> dict[str, Histogram]:
        return dict(self._phases)
