"""Which published service a request means. Pure: from the records found to one of them, with the reason."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Container, Iterable, Sequence
from enum import IntEnum

from msgspec import Struct

from protocol.decisions import MAX_PASSED_OVER, OtherService, cut
from protocol.identifiers import in_category
from protocol.instances import StartRequest
from protocol.problems import AmbiguousService
from protocol.records import ServiceRecord
from region_controller.agents import Warmth
from region_controller.offers import offered
from region_controller.refusals import Refusal

WarmthOf = Callable[[ServiceRecord], Warmth]
"""How far along this region is with a service."""


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


class Resolved(Struct, frozen=True):
    """The service that is meant, and why. `others` fit as well, in order of preference; `more` are not shown."""

    record: ServiceRecord
    why: str
    others: tuple[OtherService, ...] = ()
    more: int = 0


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
        fix="Ask for one of them by its digest, or describe what it shall do: its category, inputs and outputs.",
        candidates=[
            {
                "digest": r.digest,
                "id": r.id,
                "name": r.name,
                "publisher": r.publisher.hex(),
                "version": r.version,
                "category": r.category,
                "inputs": list(r.inputs),
                "outputs": list(r.outputs),
            }
            for r in list(first_of.values())[:MAX_CANDIDATES]
        ],
    )


class _Match(Struct, frozen=True):
    """How a service that fits stands among the others; less is better, in the order of the fields. `hindrance`: why it
    can hardly be started, if so."""

    hindrance: str
    warmth: Warmth
    standing: Standing
    newest: tuple[int, str, bytes]
    record: ServiceRecord

    @property
    def rank(self) -> tuple[bool, Warmth, Standing, tuple[int, str, bytes]]:
        return bool(self.hindrance), self.warmth, self.standing, self.newest


def by_meaning(
    request: StartRequest,
    category: str,
    found: Iterable[ServiceRecord],
    warmth_of: WarmthOf,
    standing_of: StandingOf = lambda _: Standing.NEW,
    missing: Container[str] = (),
) -> Resolved | None:
    """The best match of category, inputs and outputs. None if nothing matches.

    Warm > built > cached > by a publisher of better standing > newest. What is `missing` (digests whose content could
    not be had of late), lacks the variant asked for, or has policies that none of its variants keeps, comes after all
    others. A publisher of whom something is here is trusted. With `force_rebuild` nothing that is here is used, and
    what is here does not count.
    """
    found = list(found)
    lineages = {_lineage(r) for r in found if matches_meaning(r, category, request.inputs, request.outputs)}
    newest = newest_versions(r for r in found if _lineage(r) in lineages)
    fitting = [r for r in newest if matches_meaning(r, category, request.inputs, request.outputs)]
    if not fitting:
        return None
    warmth = {r.digest: warmth_of(r) for r in fitting}
    present = {r.publisher for r in fitting if warmth[r.digest] < Warmth.COLD}
    matches = [
        _Match(
            _hindrance(r, request, missing),
            Warmth.COLD if request.force_rebuild else warmth[r.digest],
            Standing.TRUSTED if r.publisher in present else standing_of(r.publisher),
            _newest_first(r),
            r,
        )
        for r in fitting
    ]
    best = min(matches, key=lambda match: match.rank)
    rivals = _one_of_each([m for m in matches if m.record.digest != best.record.digest])
    said = "the only match"
    if rivals:
        said = f"of {len(rivals) + 1} matches {_won(best, min(rivals, key=lambda match: match.rank))}"
    foremost = heapq.nsmallest(MAX_PASSED_OVER, rivals, key=lambda match: match.rank)
    others = tuple(
        OtherService(digest=m.record.digest, id=m.record.id, name=m.record.name, why=_lost(best, m)) for m in foremost
    )
    why = f"{best.record.id} ({best.record.name}) in {best.record.category}: {said}"
    return Resolved(best.record, why, others, len(rivals) - len(others))


def _hindrance(record: ServiceRecord, request: StartRequest, missing: Container[str]) -> str:
    if record.digest in missing:
        return "its archive could not be had of late"
    known = record.terms.variants if record.terms is not None else ()
    if request.variant is not None and all(variant.name != request.variant for variant in known):
        return f"it has no variant {request.variant}"
    offer = offered(record, request.variant)
    return offer.detail if isinstance(offer, Refusal) else ""


def _one_of_each(matches: Iterable[_Match]) -> list[_Match]:
    """The best record of each digest: several publishers may publish one archive."""
    best: dict[str, _Match] = {}
    for match in matches:
        known = best.setdefault(match.record.digest, match)
        if match.rank < known.rank:
            best[match.record.digest] = match
    return list(best.values())


_WHY = {
    Warmth.WARM: "the one that runs here already",
    Warmth.PAUSED: "the one that is frozen here already",
    Warmth.BUILT: "the one that is built here already",
    Warmth.CACHED: "the one whose archive is here already",
    Warmth.COLD: "the newest",
}
_LESS = {
    Warmth.PAUSED: "it is frozen here",
    Warmth.BUILT: "it is built here, but does not run",
    Warmth.CACHED: "only its archive is here",
    Warmth.COLD: "nothing of it is here",
}


def _won(best: _Match, next_best: _Match) -> str:
    if next_best.hindrance and not best.hindrance:
        return "the one that can be started"
    if best.warmth is Warmth.COLD and best.standing != next_best.standing:
        return "the one whose publisher is known best here"
    return _WHY[best.warmth]


def _lost(best: _Match, other: _Match) -> str:
    """In what it differs first."""
    if other.hindrance and not best.hindrance:
        return cut(other.hindrance)
    if other.warmth != best.warmth:
        return _LESS[other.warmth]
    if other.standing != best.standing:
        return "its publisher is new here" if other.standing is Standing.NEW else "nothing of its publisher ran here"
    return "it is older" if other.record.seq < best.record.seq else "it is as new; the first by digest is taken"


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
