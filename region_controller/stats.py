"""What the controller counts, for `/metrics`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from msgspec import Struct

from protocol.instances import PHASES


class ControllerStats(Struct, frozen=True, kw_only=True):
    """`starts` by kind: cold, warm, joined, handed_off, received, failed. `phases`: count and sum of seconds.

    `instances` by state. Memory in MB. `refused`: requests for services that were too many.
    """

    starts: dict[str, int]
    phases: dict[str, tuple[int, float]]
    agents: int
    memory_total: int
    memory_free: int
    instances: dict[str, int]
    leases: int
    refused: int


class Stats:
    """Counters since the controller came up."""

    def __init__(self) -> None:
        self.starts: Counter[str] = Counter(cold=0, warm=0, joined=0, handed_off=0, received=0, failed=0)
        self._phases: dict[str, tuple[int, float]] = dict.fromkeys(PHASES, (0, 0.0))

    def started(self, kind: str, timings_ms: Mapping[str, float]) -> None:
        self.starts[kind] += 1
        for phase in PHASES:
            if milliseconds := timings_ms.get(phase):
                count, seconds = self._phases[phase]
                self._phases[phase] = (count + 1, seconds + milliseconds / 1000)

    @property
    def phases(self) -> dict[str, tuple[int, float]]:
        return dict(self._phases)
