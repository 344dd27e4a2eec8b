"""What comes near a request that nothing published fits: the answer says what would match. Pure."""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct

from protocol.identifiers import category_ancestors, in_category
from protocol.instances import ServiceView, StartRequest
from protocol.problems import NoMatchingService
from protocol.records import ServiceRecord

MAX_NEAR = 5
MAX_CATEGORIES = 3
MAX_TYPES = 16
LIKE = 0.5
"""How much of two texts must agree (difflib's ratio) for one to be a slip of the other."""
MAX_COMPARED = 2_000
"""Categories that are compared letter by letter: a peer may invent any number of them."""


class _Miss(Struct, frozen=True):
    """How a service differs from what was asked."""

    record: ServiceRecord
    elsewhere: bool
    lacks_inputs: tuple[str, ...]
    lacks_outputs: tuple[str, ...]
    distance: int

    @property
    def words(self) -> str:
        said = [f"is in {self.record.category}"] if self.elsewhere else []
        said += [f"does not take {one}" for one in self.lacks_inputs]
        said += [f"does not give {one}" for one in self.lacks_outputs]
        return f"{self.record.id} ({self.record.name}) {' and '.join(said)}"

    @property
    def rank(self) -> tuple[int, int, int, int, str]:
        lacks = len(self.lacks_inputs) + len(self.lacks_outputs)
        return lacks + self.elsewhere, lacks, self.distance, -self.record.seq, self.record.digest

    def to_dict(self) -> dict[str, Any]:
        return {
            "digest": self.record.digest,
            "id": self.record.id,
            "name": self.record.name,
            "category": self.record.category,
            "inputs": list(self.record.inputs),
            "outputs": list(self.record.outputs),
            "lacks_inputs": list(self.lacks_inputs),
            "lacks_outputs": list(self.lacks_outputs),
        }


def no_such_service(text: str, published: Iterable[ServiceRecord | ServiceView]) -> NoMatchingService:
    """Names up to three published ids and names that come near."""
    names = sorted({n for service in published for n in (service.id, service.name)})
    near = difflib.get_close_matches(text, names, n=3, cutoff=LIKE)
    fix = (
        f"Did you mean {', '.join(near)}?"
        if near
        else "`cornerstore search` (GET /v1/services) lists what is published."
    )
    return NoMatchingService(f"nothing published is called {text!r}", fix=fix, near=near)


def no_such_meaning(request: StartRequest, category: str, records: Sequence[ServiceRecord]) -> NoMatchingService:
    """Says what was asked and what would match, in `fix` and for machines:

    `near` in words, `nearest` the services that come nearest, with what each lacks; `categories` that are like the one
    asked for, where nothing is published in that; `inputs_there`, `outputs_there`: types that services there do have.
    `records`: the newest version of each service.
    """
    there = [r for r in records if in_category(r.category, category)]
    misses = (_miss(request, category, record) for record in records if _comes_near(request, category, record))
    nearest = heapq.nsmallest(MAX_NEAR, misses, key=lambda miss: miss.rank)
    categories = [] if there else _like(category, {r.category for r in records})
    near = [miss.words for miss in nearest] + [f"category {one} exists" for one in categories]
    fix = "; ".join(near[:MAX_NEAR]) or "`cornerstore search` (GET /v1/categories) shows what is published."
    return NoMatchingService(
        f"no published service has {_asked(request, category)}",
        fix=fix,
        near=near[:MAX_NEAR],
        nearest=[miss.to_dict() for miss in nearest],
        categories=categories,
        inputs_there=sorted({one for record in there for one in record.inputs})[:MAX_TYPES],
        outputs_there=sorted({one for record in there for one in record.outputs})[:MAX_TYPES],
    )


def _asked(request: StartRequest, category: str) -> str:
    asked = f"category {category}"
    if request.inputs:
        asked += f", inputs {', '.join(request.inputs)}"
    if request.outputs:
        asked += f", outputs {', '.join(request.outputs)}"
    return asked


def _miss(request: StartRequest, category: str, record: ServiceRecord) -> _Miss:
    lacks_inputs = tuple(sorted(set(request.inputs) - set(record.inputs)))
    lacks_outputs = tuple(sorted(set(request.outputs) - set(record.outputs)))
    return _Miss(
        record=record,
        elsewhere=not in_category(record.category, category),
        lacks_inputs=lacks_inputs,
        lacks_outputs=lacks_outputs,
        distance=_steps(category, record.category),
    )


def _comes_near(request: StartRequest, category: str, record: ServiceRecord) -> bool:
    """It stands where it was looked for, or somewhere else but has a type that was asked for."""
    return (
        in_category(record.category, category)
        or any(one in record.inputs for one in request.inputs)
        or any(one in record.outputs for one in request.outputs)
    )


def _steps(one: str, other: str) -> int:
    """From one category to the other through the tree."""
    ours, theirs = set(category_ancestors(one)), set(category_ancestors(other))
    return len(ours ^ theirs)


def _like(category: str, known: set[str]) -> list[str]:
    """Those that are written alike first, then those a short way through the tree."""
    alike = difflib.get_close_matches(category, heapq.nsmallest(MAX_COMPARED, known), n=MAX_CATEGORIES, cutoff=LIKE)
    top = category_ancestors(category)
    kin = [c for c in known - set(alike) if any(a != "/" and in_category(c, a) for a in top)]
    near = heapq.nsmallest(MAX_CATEGORIES - len(alike), kin, key=lambda c: (_steps(category, c), c))
    return alike + near
