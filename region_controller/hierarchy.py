"""Whom to ask when no agent here can host. Pure: from region records to an ordered list.

Order: other controllers of our own region, regions below us, siblings, the siblings' subtrees, then one level up and
the same again. Within one step: room for the service, the fresher summary, more free memory, the name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from msgspec import Struct

from protocol.identifiers import parent_region
from protocol.records import RegionRecord

MAX_HOPS = 4
STALE_AFTER_S = 60.0
"""A summary older than this says little: its region is asked after the others of its step."""
FRESHNESS_STEP_S = 15.0
"""Summaries whose ages differ by less are equally fresh."""


class Hop(Struct, frozen=True):
    region: str
    node: str
    addresses: tuple[str, ...]


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
    home: str, records: Iterable[RegionRecord], *, me: str, visited: Collection[str], mem: int, now: float
) -> list[Hop]:
    """Controllers to ask, best first, each node once. `visited`: node ids. `mem` in MB, `now` in Unix s."""
    newest: dict[str, RegionRecord] = {}
    for record in records:
        known = newest.get(record.node)
        if known is None or record.seq > known.seq:
            newest[record.node] = record
    askable = [r for r in newest.values() if r.node != me and r.node not in visited and r.expiry > now]
    askable.sort(key=lambda r: _rank(home, r, mem, now))
    return [Hop(r.region, r.node, r.addresses) for r in askable]


def _rank(home: str, record: RegionRecord, mem: int, now: float) -> tuple[int, bool, int, int, str, str]:
    age = max(0.0, now - record.seq / 1000)
    no_room = record.agents == 0 or record.memory_free < mem
    freshness = int(age // FRESHNESS_STEP_S) if age <= STALE_AFTER_S else 1_000
    return (_step(home, record.region), no_room, freshness, -record.memory_free, record.region, record.node)


def _step(home: str, region: str) -> int:
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
