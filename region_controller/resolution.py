"""Which published service a request means. Pure: from the records found to one of them, with the reason."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Container, Iterable, Sequence
from enum import IntEnum

from protocol.identifiers import in_category
from protocol.instances import ServiceView, StartRequest
from protocol.problems import AmbiguousService, NoMatchingService
from protocol.records import ServiceRecord
from region_controller.placement import Warmth

WarmthOf = Callable[[str], Warmth]
"""How far along this region is with a digest."""


class Standing(IntEnum):
    """What is known here of a publisher, best first. Keys to publish with are free: a new one vouches for nothing."""

    TRUSTED = 0
    """Something of it was published or started here."""
    SEEN = 1
    """It has been in the mesh for a while."""
    NEW = 2


StandingOf = Callable[[bytes], Standing]

MAX_CANDIDATES = 20
"""How many services an AmbiguousService lists."""


def by_name(text: str, found: Iterable[ServiceRecord]) -> ServiceRecord | None:
    """The one service that carries the id, name or digest; None if there is none.

    Raises AmbiguousService if several different services carry it, unless one publisher publishes all of them as
    versions of one (id, name): then its newest.
    """
    records = sorted(set(found), key=_newest_first)
    if not records:
        return None
    digests = {r.digest for r in records}
    if len(digests) == 1:
        return records[0]
    for lineage in _lineages(records):
        if {r.digest for r in lineage} == digests:
            return lineage[0]
    first_of = {d: next(r for r in records if r.digest == d) for d in sorted(digests)}
    raise AmbiguousService(
        f"{text!r} names {len(digests)} different services",
        fix="Ask for one of them by its digest.",
        candidates=[
            {"digest": r.digest, "id": r.id, "name": r.name, "publisher": r.publisher.hex()}
            for r in list(first_of.values())[:MAX_CANDIDATES]
        ],
    )


def by_meaning(
    request: StartRequest,
    category: str,
    found: Iterable[ServiceRecord],
    warmth_of: WarmthOf,
    standing_of: StandingOf = lambda _: Standing.NEW,
    missing: Container[str] = (),
) -> tuple[ServiceRecord, str] | None:
    """The best match of category, inputs and outputs. None if nothing matches.

    Warm > built > cached > by a publisher of better standing > newest. What is `missing` (digests whose content could
    not be had of late) comes after all others. A publisher of whom something is here is trusted.
    """
    found = list(found)
    lineages = {_lineage(r) for r in found if matches_meaning(r, category, request.inputs, request.outputs)}
    newest = newest_versions(r for r in found if _lineage(r) in lineages)
    matches = [r for r in newest if matches_meaning(r, category, request.inputs, request.outputs)]
    if not matches:
        return None
    warmth = {r.digest: warmth_of(r.digest) for r in matches}
    present = {r.publisher for r in matches if warmth[r.digest] < Warmth.COLD}

    def preference(record: ServiceRecord) -> tuple[bool, Warmth, Standing, tuple[int, str, bytes]]:
        standing = Standing.TRUSTED if record.publisher in present else standing_of(record.publisher)
        return record.digest in missing, warmth[record.digest], standing, _newest_first(record)

    best = min(matches, key=preference)
    digests = len({r.digest for r in matches})
    rivals = "the only match" if digests == 1 else f"of {digests} matches {_WHY[warmth[best.digest]]}"
    return best, f"{best.id} ({best.name}) in {best.category}: {rivals}"


_WHY = {
    Warmth.WARM: "the one that runs here already",
    Warmth.PAUSED: "the one that is frozen here already",
    Warmth.BUILT: "the one that is built here already",
    Warmth.CACHED: "the one whose archive is here already",
    Warmth.COLD: "the newest",
}


def matches_meaning(record: ServiceRecord, category: str, inputs: Sequence[str], outputs: Sequence[str]) -> bool:
    """In the subtree, accepts every requested input, produces every requested output."""
    return (
        in_category(record.category, category)
        and all(one in record.inputs for one in inputs)
        and all(one in record.outputs for one in outputs)
    )


def newest_versions(records: Iterable[ServiceRecord]) -> list[ServiceRecord]:
    """One record per publisher, id and name, newest first."""
    newest: dict[tuple[bytes, str, str], ServiceRecord] = {}
    for record in records:
        best = newest.setdefault(_lineage(record), record)
        if best is not record and _newest_first(record) < _newest_first(best):
            newest[_lineage(record)] = record
    return sorted(newest.values(), key=_newest_first)


Rank = tuple[int, int, bytes, str, str]
"""Where a record stands in a search: by standing, newest first; no two records have the same."""


def known_first(records: Sequence[ServiceRecord], standing_of: StandingOf) -> Callable[[ServiceRecord], Rank]:
    """The ranks of `records`: publishers of better standing first; of equal standing, the newest first."""
    standing = {publisher: int(standing_of(publisher)) for publisher in {r.publisher for r in records}}
    return lambda r: (standing[r.publisher], -r.seq, r.publisher, r.id, r.name)


def no_such_service(text: str, published: Iterable[ServiceRecord | ServiceView]) -> NoMatchingService:
    """Names up to three published ids and names that come near."""
    names = sorted({n for service in published for n in (service.id, service.name)})
    near = difflib.get_close_matches(text, names, n=3, cutoff=0.5)
    fix = (
        f"Did you mean {', '.join(near)}?"
        if near
        else "`cornerstore search` (GET /v1/services) lists what is published."
    )
    return NoMatchingService(f"nothing published is called {text!r}", fix=fix, near=near)


def no_such_meaning(request: StartRequest, category: str, all_records: Iterable[ServiceRecord]) -> NoMatchingService:
    """Says what was asked, and which services come near: same category with other types, same types elsewhere."""
    records = newest_versions(all_records)
    near = []
    for record in records:
        if in_category(record.category, category):
            lacks = [f"does not take {i}" for i in sorted(set(request.inputs) - set(record.inputs))]
            lacks += [f"does not give {o}" for o in sorted(set(request.outputs) - set(record.outputs))]
            near.append(f"{record.id} ({record.name}) {' and '.join(lacks)}")
        elif matches_meaning(record, "/", request.inputs, request.outputs) and (request.inputs or request.outputs):
            near.append(f"{record.id} ({record.name}) is in {record.category}")
    asked = f"category {category}"
    if request.inputs:
        asked += f", inputs {', '.join(request.inputs)}"
    if request.outputs:
        asked += f", outputs {', '.join(request.outputs)}"
    if not near:
        categories = sorted({r.category for r in records})
        close = difflib.get_close_matches(category, categories, n=3, cutoff=0.5)
        near = [f"category {c} exists" for c in close]
    fix = "; ".join(near[:5]) or "`cornerstore search` (GET /v1/categories) shows what is published."
    return NoMatchingService(f"no published service has {asked}", fix=fix, near=near[:5])


def _lineages(records: Sequence[ServiceRecord]) -> list[list[ServiceRecord]]:
    """Records grouped by publisher, id and name, in the order given."""
    groups: dict[tuple[bytes, str, str], list[ServiceRecord]] = {}
    for record in records:
        groups.setdefault(_lineage(record), []).append(record)
    return list(groups.values())


def _lineage(record: ServiceRecord) -> tuple[bytes, str, str]:
    return record.publisher, record.id, record.name


def _newest_first(record: ServiceRecord) -> tuple[int, str, bytes]:
    return (-record.seq, record.digest, record.publisher)
