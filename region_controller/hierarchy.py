"""Whom to ask when no agent here can host. Pure: from what is known of other controllers to an ordered list.

Order: other controllers of our own region, regions below us, siblings, the siblings' subtrees, then one level up and
the same again. Within one step: room for the service (one that runs it needs none), the fresher summary, who runs it
already, the shorter round trip, more free memory, the name. A service whose strategy is `nearest` has the round trip
come first of all. Who is farther away than the service allows, or at an unknown distance, is not asked then.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

from msgspec import Struct

from protocol.causes import Cause
from protocol.identifiers import parent_region
from protocol.records import RegionRecord
from protocol.service import Strategy
from region_controller.refusals import Refusal
from region_controller.summaries import Load, mark_of

MAX_HOPS = 4
STALE_AFTER_S = 60.0
"""A summary older than this says little: its region is asked after the others of its step."""
FRESHNESS_STEP_S = 15.0
"""Summaries whose ages differ by less are equally fresh."""
RTT_STEP_S = 0.005
"""Round trips from one up to the next doubling of it are equally long: a measured one trembles."""


class Hop(Struct, frozen=True):
    """A controller to ask. `rtt_s`: to it and back, None if not measured."""

    region: str
    node: str
    addresses: tuple[str, ...]
    rtt_s: float | None = None


class Relative(Struct, frozen=True, kw_only=True):
    """Another controller, with what is known of it. `age_s`: of that. `rtt_s`: smoothed, None if never measured.

    `below`: the regions under it. `reachable` False: it did not answer us of late. `refused`: digests that it would not
    take, and nothing newer was heard of it. `live`: heard by the links between controllers, not read in the mesh.
    """

    region: str
    node: str
    addresses: tuple[str, ...]
    age_s: float
    load: Load
    below: Load = Load()
    rtt_s: float | None = None
    reachable: bool = True
    refused: frozenset[str] = frozenset()
    live: bool = False

    @property
    def largest_free(self) -> int:
        """MB, at one agent of its own or below it."""
        return max(self.load.largest_free, self.below.largest_free)

    def is_warm(self, digest: str) -> bool:
        """It probably runs there, or below it."""
        return (mark := mark_of(digest)) in self.load.warm or mark in self.below.warm


def recorded(records: Iterable[RegionRecord], now: float) -> list[Relative]:
    """The controllers that the mesh's records name, by the newest record of each. `now` in Unix s."""
    newest: dict[str, RegionRecord] = {}
    for record in records:
        known = newest.get(record.node)
        if known is None or record.seq > known.seq:
            newest[record.node] = record
    return [
        Relative(
            region=r.region,
            node=r.node,
            addresses=r.addresses,
            age_s=max(0.0, now - r.seq / 1000),
            load=Load(
                agents=r.agents,
                memory_total=r.memory_total,
                memory_free=r.memory_free,
                largest_free=r.memory_free,
            ),
        )
        for r in newest.values()
        if r.expiry > now
    ]


def lookup_names(home: str) -> list[str]:
    """The record names that together list the candidates of `home`: children, then siblings and up to the top."""
    names = [f"region:{home}", f"children:{home}"]
    region = home
    while region:
        region = parent_region(region)
        names.append(f"children:{region}")
        if region:
            names.append(f"region:{region}")
    return names


def relation(home: str, other: str) -> str:
    """self, parent, sibling, child or other, seen from `home`."""
    if other == home:
        return "self"
    if other == parent_region(home):
        return "parent"
    if parent_region(other) == parent_region(home):
        return "sibling"
    return "child" if parent_region(other) == home else "other"


def candidates(
    home: str,
    known: Iterable[Relative],
    *,
    me: str,
    visited: Collection[str],
    mem: int,
    digest: str = "",
    strategy: Strategy = "spread",
    within_ms: float | None = None,
) -> list[Hop]:
    """Controllers to ask, best first, each node once. `visited`: node ids. `mem` in MB.

    Who did not answer of late is left out, and who is `too_far`; who refused this very service comes last.
    """
    askable = [r for r in known if r.node != me and r.node not in visited and r.reachable]
    askable = [r for r in askable if too_far(r.rtt_s, within_ms) is None]
    nearest = strategy == "nearest"
    askable.sort(key=lambda r: (digest in r.refused, _distance(r.rtt_s) if nearest else 0, _rank(home, r, mem, digest)))
    return [Hop(r.region, r.node, r.addresses, r.rtt_s) for r in askable]


def too_far(rtt_s: float | None, within_ms: float | None) -> Refusal | None:
    """Why a controller is not asked for a service that allows a round trip of `within_ms` (None: any)."""
    if within_ms is None:
        return None
    if rtt_s is None:
        return Refusal(Cause.LATENCY, f"how far away it is was not measured yet, {within_ms:.3g} ms are allowed")
    if 1e3 * rtt_s > within_ms:
        return Refusal(Cause.LATENCY, f"it is {1e3 * rtt_s:.3g} ms away, {within_ms:.3g} ms are allowed")
    return None


def warm_within(
    rtt_s: float, known: Iterable[Relative], *, me: str, visited: Collection[str], digest: str
) -> Relative | None:
    """The nearest controller, at most `rtt_s` away by a measured round trip, whose agents run the service, as it says.

    Wherever it stands in the tree: what counts is that its instance answers sooner than a cold start here would.
    """
    near = [
        r
        for r in known
        if r.live and r.reachable and r.node != me and r.node not in visited
        if mark_of(digest) in r.load.warm and digest not in r.refused
        if r.rtt_s is not None and r.rtt_s <= rtt_s
    ]
    return min(near, key=lambda r: (r.rtt_s, r.node), default=None)


def _rank(home: str, other: Relative, mem: int, digest: str) -> tuple[int, bool, int, bool, int, int, str, str]:
    warm = bool(digest) and other.is_warm(digest)
    no_room = not warm and (other.load.agents + other.below.agents == 0 or other.largest_free < mem)
    freshness = int(other.age_s // FRESHNESS_STEP_S) if other.age_s <= STALE_AFTER_S else 1_000
    return (
        step_to(home, other.region),
        no_room,
        freshness,
        not warm,
        _distance(other.rtt_s),
        -other.largest_free,
        other.region,
        other.node,
    )


def _distance(rtt_s: float | None) -> int:
    """How many doublings of `RTT_STEP_S`; one that was never measured may lie anywhere, and comes after all."""
    return 64 if rtt_s is None else max(0, math.frexp(rtt_s / RTT_STEP_S)[1])


def step_to(home: str, region: str) -> int:
    """0 our own region, 1 below us, then for each level up: siblings, their subtrees, the ancestor itself."""
    if region == home:
        return 0
    if region.startswith(home + "/"):
        return 1
    step, ancestor = 2, home
    while ancestor:
        ancestor = parent_region(ancestor)
        if region == ancestor:
            return step + 2
        if not ancestor or region.startswith(ancestor + "/"):
            return step if parent_region(region) == ancestor else step + 1
        step += 3
    return step
