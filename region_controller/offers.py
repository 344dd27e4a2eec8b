"""How a service shall be run for a request: which variant, with how much memory, how far away. Pure.

A client may name a variant; then it gets that one. Else a QoS policy with `min_accuracy` picks the cheapest variant
that is accurate enough: the one with the least memory, then the least `latency_ms`. Of `max_latency_ms` the variant's
own `latency_ms` is taken off; what is left is the longest round trip at which an agent may be.
"""

from __future__ import annotations

import math

from msgspec import Struct

from protocol.causes import Cause
from protocol.records import ServiceRecord, Terms, VariantTerms
from region_controller.refusals import Refusal


class Offer(Struct, frozen=True):
    """`mem` in MB. `within_ms`: the longest round trip, None: any. `why` this variant; empty where there was no choice
    to make."""

    variant: str | None
    mem: int
    within_ms: float | None = None
    why: str = ""


def offered(record: ServiceRecord, asked: str | None) -> Offer | Refusal:
    """`asked`: the variant that the client names. One that the record does not know is for the agent to refuse."""
    terms = record.terms or Terms()
    if asked is not None or terms.min_accuracy is None:
        variant = next((v for v in terms.variants if v.name == asked), None)
        return _offer(record, terms, asked, variant)
    accurate = [v for v in terms.variants if v.accuracy is not None and v.accuracy >= terms.min_accuracy]
    if not accurate:
        return Refusal(Cause.ACCURACY, _inaccurate(terms))
    of = f"the cheapest of {len(accurate)}" if len(accurate) > 1 else "the only one"
    cheapest_first = sorted(accurate, key=lambda v: _cost(record, v))
    offers = [
        _offer(record, terms, v.name, v, f"variant {v.name} is {of} with accuracy {terms.min_accuracy:g} or more")
        for v in cheapest_first
    ]
    return next((one for one in offers if isinstance(one, Offer)), offers[0])


def _offer(
    record: ServiceRecord, terms: Terms, name: str | None, variant: VariantTerms | None, why: str = ""
) -> Offer | Refusal:
    takes = 0.0 if variant is None else variant.latency_ms or 0.0
    most = terms.max_latency_ms
    if variant is not None and most is not None and takes >= most:
        return Refusal(
            Cause.LATENCY, f"variant {variant.name} takes {takes:g} ms itself, {most:g} ms are allowed in all"
        )
    return Offer(name, _mem(record, variant), None if most is None else most - takes, why)


def _cost(record: ServiceRecord, variant: VariantTerms) -> tuple[int, float, float, str]:
    latency = math.inf if variant.latency_ms is None else variant.latency_ms
    return _mem(record, variant), latency, -(variant.accuracy or 0.0), variant.name


def _mem(record: ServiceRecord, variant: VariantTerms | None) -> int:
    return record.mem if variant is None or variant.mem is None else variant.mem


def _inaccurate(terms: Terms) -> str:
    wanted = f"its policy asks for accuracy {terms.min_accuracy:g}"
    known = [v for v in terms.variants if v.accuracy is not None]
    if not known:
        return f"{wanted}, and no variant says how accurate it is"
    best = max(known, key=lambda v: (v.accuracy or 0.0, v.name))
    return f"{wanted}, and its best variant, {best.name}, has {best.accuracy:g}"
