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
        return _too_slow(terms, variant) or _offer(record, terms, asked, variant)
    accurate = [v for v in terms.variants if v.accuracy is not None and v.accuracy >= terms.min_accuracy]
    if not accurate:
        return Refusal(Cause.ACCURACY, _inaccurate(terms))
    cheapest_first = sorted(accurate, key=lambda v: _cost(record, v))
    refusals = [_too_slow(terms, variant) for variant in cheapest_first]
    for variant, refusal in zip(cheapest_first, refusals, strict=True):
        if refusal is None:
            of = f"the cheapest of {len(accurate)}" if len(accurate) > 1 else "the only one"
            why = f"variant {variant.name} is {of} with accuracy {terms.min_accuracy:g} or more"
            return _offer(record, terms, variant.name, variant, why)
    return refusals[0] or Refusal(Cause.LATENCY, "every variant is too slow")


def _offer(record: ServiceRecord, terms: Terms, name: str | None, variant: VariantTerms | None, why: str = "") -> Offer:
    within = None if terms.max_latency_ms is None else terms.max_latency_ms - _takes(variant)
    return Offer(name, _mem(record, variant), within, why)


def _cost(record: ServiceRecord, variant: VariantTerms) -> tuple[int, float, float, str]:
    latency = math.inf if variant.latency_ms is None else variant.latency_ms
    return _mem(record, variant), latency, -(variant.accuracy or 0.0), variant.name


def _mem(record: ServiceRecord, variant: VariantTerms | None) -> int:
    return record.mem if variant is None or variant.mem is None else variant.mem


def _takes(variant: VariantTerms | None) -> float:
    return 0.0 if variant is None else variant.latency_ms or 0.0


def _too_slow(terms: Terms, variant: VariantTerms | None) -> Refusal | None:
    if variant is None or terms.max_latency_ms is None or _takes(variant) < terms.max_latency_ms:
        return None
    said = f"variant {variant.name} takes {_takes(variant):g} ms itself, {terms.max_latency_ms:g} ms are allowed in all"
    return Refusal(Cause.LATENCY, said)


def _inaccurate(terms: Terms) -> str:
    wanted = f"its policy asks for accuracy {terms.min_accuracy:g}"
    known = [v for v in terms.variants if v.accuracy is not None]
    if not known:
        return f"{wanted}, and no variant says how accurate it is"
    best = max(known, key=lambda v: (v.accuracy or 0.0, v.name))
    return f"{wanted}, and its best variant, {best.name}, has {best.accuracy:g}"
