"""A request on its way through the controller, once it is known which service it means."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping

import msgspec
from msgspec import Struct

from protocol.instances import PHASES, StartRequest
from protocol.records import ServiceRecord
from protocol.service import Strategy
from region_controller.agents import Need
from region_controller.flights import Present, always
from region_controller.offers import Offer
from region_controller.resolution import Resolved


class Route(Struct, frozen=True, kw_only=True):
    """How a request came here. `deadline` on the event loop's clock. `client`: the address it came from, if a phone's.
    `origin`: the controller that handed it over. `present`: whether who asked is still there.

    `only_warm`: it would rather start the service itself than have it started here. `within_ms`: how long the round
    trip from here to the agent may be, None: as the service says.
    """

    deadline: float
    client: str = ""
    origin: str = ""
    present: Present = always
    visited: frozenset[str] = frozenset()
    hops: int = 0
    only_warm: bool = False
    within_ms: float | None = None


class Wanted(Struct, frozen=True, kw_only=True):
    """A request once resolved. `alive_time`: what it asks for, within the bounds of this region."""

    request: StartRequest
    alive_time: int | None
    resolved: Resolved
    offer: Offer
    flavour: str
    route: Route
    began: float
    resolve_ms: float

    @property
    def record(self) -> ServiceRecord:
        return self.resolved.record

    @property
    def mem(self) -> int:
        """MB, of the variant."""
        return self.offer.mem

    @property
    def why(self) -> str:
        """Which service it is, and which variant."""
        return f"{self.resolved.why}; {self.offer.why}" if self.offer.why else self.resolved.why

    @property
    def strategy(self) -> Strategy:
        return self.record.terms.strategy if self.record.terms is not None else "spread"

    @property
    def within_ms(self) -> float | None:
        """The longest round trip from here to the agent."""
        bounds = [ms for ms in (self.offer.within_ms, self.route.within_ms) if ms is not None]
        return min(bounds, default=None)

    def need(self) -> Need:
        return Need(
            digest=self.record.digest,
            mem=self.mem,
            kind=self.record.kind,
            labels=dict(self.record.labels),
            flavour=self.flavour,
            fresh=self.request.force_rebuild,
            strategy=self.strategy,
            within_ms=self.within_ms,
        )

    @property
    def key(self) -> str:
        """The same for the same request of the same asker, however often it comes; empty if that cannot be told."""
        key = self.request.request_key
        return hashlib.sha256(f"{self.route.origin} {key}".encode()).hexdigest()[:32] if key else ""

    def timings(self, measured: dict[str, float]) -> dict[str, float]:
        """All phases in ms; those that did not happen are 0."""
        timings = {phase: round(measured.get(phase, 0.0), 3) for phase in PHASES}
        return timings | {"resolve": round(self.resolve_ms, 3), "total": round(since(self.began), 3)}


def flavour_of(parameters: Mapping[str, str], variant: str | None) -> str:
    """What tells customised instances of one service apart; empty for the plain service."""
    if not parameters and variant is None:
        return ""
    plain = msgspec.json.encode([sorted(parameters.items()), variant])
    return hashlib.sha256(plain).hexdigest()[:32]


def loop_time() -> float:
    return asyncio.get_running_loop().time()


def since(began: float) -> float:
    return (time.perf_counter() - began) * 1e3
