"""A request on its way through the controller, once it is known which service it means."""

from __future__ import annotations

import asyncio
import hashlib
import time

import msgspec
from msgspec import Struct

from protocol.instances import PHASES, StartRequest
from protocol.records import ServiceRecord
from region_controller.placement import Need


class Route(Struct, frozen=True, kw_only=True):
    """How a request came here. `deadline` on the event loop's clock. `origin`: the controller that handed it over.

    `only_warm`: it would rather start the service itself than have it started here.
    """

    deadline: float
    origin: str = ""
    visited: frozenset[str] = frozenset()
    hops: int = 0
    only_warm: bool = False


class Wanted(Struct, frozen=True, kw_only=True):
    """A request once resolved."""

    request: StartRequest
    record: ServiceRecord
    flavour: str
    route: Route
    why: str
    began: float
    resolve_ms: float

    def need(self) -> Need:
        return Need(
            digest=self.record.digest,
            mem=self.record.mem,
            kind=self.record.kind,
            labels=dict(self.record.labels),
            flavour=self.flavour,
            fresh=self.request.force_rebuild,
        )

    def timings(self, measured: dict[str, float]) -> dict[str, float]:
        """All phases in ms; those that did not happen are 0."""
        timings = {phase: round(measured.get(phase, 0.0), 3) for phase in PHASES}
        return timings | {"resolve": round(self.resolve_ms, 3), "total": round(since(self.began), 3)}


def flavour_of(request: StartRequest) -> str:
    """What tells customised instances of one service apart; empty for the plain service."""
    if not request.parameters and request.variant is None:
        return ""
    plain = msgspec.json.encode([sorted(request.parameters.items()), request.variant])
    return hashlib.sha256(plain).hexdigest()[:32]


def loop_time() -> float:
    return asyncio.get_running_loop().time()


def since(began: float) -> float:
    return (time.perf_counter() - began) * 1e3
