"""What a service's QoS policy makes of a request: the variant, its memory, how far away it may run."""

from __future__ import annotations

import msgspec
import pytest

from protocol.causes import Cause
from protocol.records import ServiceRecord, Terms, VariantTerms
from region_controller.offers import Offer, offered
from region_controller.refusals import Refusal
from tests.one_region import a_service

FAST = VariantTerms("fast", accuracy=0.8, latency_ms=5.0)
EXACT = VariantTerms("exact", accuracy=0.99, latency_ms=40.0, mem=300)
LEAN = VariantTerms("lean", accuracy=0.8, latency_ms=9.0, mem=50)


def a_record(*variants: VariantTerms, **terms: float) -> ServiceRecord:
    return msgspec.structs.replace(a_service(mem=100), terms=Terms(variants=variants, **terms))  # type: ignore[arg-type]


def the_variant(record: ServiceRecord, asked: str | None = None) -> tuple[str | None, int, float | None]:
    offer = offered(record, asked)
    assert isinstance(offer, Offer)
    return offer.variant, offer.mem, offer.within_ms


def test_a_plain_service_is_taken_as_it_is() -> None:
    assert the_variant(a_service(mem=100)) == (None, 100, None)
    assert the_variant(a_record(FAST, EXACT)) == (None, 100, None), "without a bound there is nothing to choose"


def test_the_cheapest_variant_that_is_accurate_enough() -> None:
    assert the_variant(a_record(EXACT, FAST, LEAN, min_accuracy=0.8)) == ("lean", 50, None)
    assert the_variant(a_record(EXACT, FAST, min_accuracy=0.8)) == ("fast", 100, None)
    assert the_variant(a_record(EXACT, FAST, LEAN, min_accuracy=0.9)) == ("exact", 300, None)
    slower = msgspec.structs.replace(FAST, name="as cheap", latency_ms=6.0)
    assert the_variant(a_record(slower, FAST, min_accuracy=0.5))[0] == "fast", "of one price the faster"
    offer = offered(a_record(EXACT, FAST, LEAN, min_accuracy=0.8), None)
    assert offer.why == "variant lean is the cheapest of 3 with accuracy 0.8 or more"  # type: ignore[union-attr]


def test_the_client_has_the_last_word_on_the_variant() -> None:
    assert the_variant(a_record(EXACT, FAST, min_accuracy=0.9), "fast") == ("fast", 100, None)
    assert the_variant(a_record(EXACT, FAST), "exact") == ("exact", 300, None)
    assert the_variant(a_record(FAST), "unknown") == ("unknown", 100, None), "its agent refuses it"


def test_the_time_that_a_variant_takes_is_not_left_for_the_way() -> None:
    assert the_variant(a_record(max_latency_ms=50.0)) == (None, 100, 50.0)
    assert the_variant(a_record(EXACT, max_latency_ms=50.0), "exact") == ("exact", 300, 10.0)
    assert the_variant(a_record(EXACT, LEAN, min_accuracy=0.5, max_latency_ms=30.0)) == ("lean", 50, 21.0)


@pytest.mark.parametrize(
    ("record", "asked", "cause", "says"),
    [
        (a_record(FAST, LEAN, min_accuracy=0.9), None, Cause.ACCURACY, "its best variant, lean, has 0.8"),
        (a_record(min_accuracy=0.9), None, Cause.ACCURACY, "no variant says how accurate it is"),
        (a_record(VariantTerms("plain"), min_accuracy=0.0), None, Cause.ACCURACY, "no variant says"),
        (a_record(EXACT, min_accuracy=0.9, max_latency_ms=40.0), None, Cause.LATENCY, "exact takes 40 ms itself"),
        (a_record(EXACT, max_latency_ms=10.0), "exact", Cause.LATENCY, "10 ms are allowed in all"),
    ],
)
def test_what_no_variant_can_keep_is_refused_by_name(
    record: ServiceRecord, asked: str | None, cause: Cause, says: str
) -> None:
    refusal = offered(record, asked)
    assert isinstance(refusal, Refusal)
    assert refusal.cause is cause
    assert says in refusal.detail
