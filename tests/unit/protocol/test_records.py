from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.problems import InvalidRecord
from protocol.records import (
    MAX_ENVELOPE,
    ServiceRecord,
    Terms,
    VariantTerms,
    check_publishable,
    raw_public_key,
    service_record,
    sign,
    verify,
)
from protocol.service import PlacementPolicy, QualityOfService, ServiceDescriptor, Variant


def test_a_long_description_and_version_are_cut_to_what_a_record_holds() -> None:
    """An archive may say more: it must not be valid and yet impossible to publish."""
    key = Ed25519PrivateKey.generate()
    descriptor = ServiceDescriptor(
        id="wc01",
        name="count",
        kind="docker_container",
        category="/text",
        mem_requirement=1,
        entry="a.yaml",
        description="d" * 500,
        version="v" * 64,
    )
    record = service_record(
        descriptor, digest="sha256:" + "a" * 64, size=1, publisher=raw_public_key(key), seq=1, expiry=1
    )
    signed = sign(record, key).record
    assert isinstance(signed, ServiceRecord)
    assert (signed.description, signed.version) == ("d" * 160, "v" * 32)


def a_descriptor(**changes: object) -> ServiceDescriptor:
    plain: dict[str, object] = {
        "id": "wc01",
        "name": "count",
        "kind": "docker_container",
        "category": "/text",
        "mem_requirement": 1,
        "entry": "a.yaml",
    }
    return ServiceDescriptor(**{**plain, **changes})  # type: ignore[arg-type]


def test_text_is_cut_between_characters_and_by_what_it_takes_on_the_wire() -> None:
    cut = service_record(
        a_descriptor(description="é" * 100), digest="d", size=1, publisher=b"", seq=1, expiry=1
    ).description
    assert cut == "é" * 80


def test_the_labels_that_an_agent_must_have_are_in_the_record() -> None:
    descriptor = a_descriptor(placement=PlacementPolicy("nearest", {"site": "campus", "gpu": "yes"}))
    record = service_record(descriptor, digest="d", size=1, publisher=b"", seq=1, expiry=1)
    assert record.labels == (("gpu", "yes"), ("site", "campus"))
    assert record.terms == Terms("nearest")


def test_policies_and_variants_are_in_the_record_and_come_back_as_they_were() -> None:
    key = Ed25519PrivateKey.generate()
    descriptor = a_descriptor(
        quality=QualityOfService(max_latency_ms=50.0, min_accuracy=0.8),
        variants={"fast": Variant(accuracy=0.8, latency_ms=5.0), "exact": Variant(accuracy=1.0, mem_requirement=128)},
    )
    record = service_record(
        descriptor, digest="sha256:" + "a" * 64, size=1, publisher=raw_public_key(key), seq=1, expiry=1
    )
    assert verify(sign(record, key).envelope).record == record
    variants = (VariantTerms("exact", 1.0, None, 128), VariantTerms("fast", 0.8, 5.0))
    assert record.terms == Terms("spread", 50.0, 0.8, variants)
    plain = service_record(a_descriptor(), digest="d", size=1, publisher=b"", seq=1, expiry=1)
    assert plain.terms is None, "what says nothing of it costs a byte"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"inputs": tuple(f"type{n}" for n in range(9))}, "inputs"),
        ({"variants": {f"v{n}": Variant() for n in range(17)}}, "terms"),
        ({"category": "/" + "c" * 65}, "category"),
        ({"placement": PlacementPolicy(required_labels={"site": "x" * 65})}, "labels"),
        ({"inputs": ("i" * 64,) * 8, "outputs": ("o" * 64,) * 8}, f"at most {MAX_ENVELOPE}"),
    ],
)
def test_what_no_record_holds_is_named(changes: dict[str, object], word: str) -> None:
    check_publishable(a_descriptor())
    with pytest.raises(InvalidRecord, match=word):
        check_publishable(a_descriptor(**changes))


def test_what_is_publishable_fits_whatever_the_time_and_size() -> None:
    key = Ed25519PrivateKey.generate()
    descriptor = a_descriptor(
        id="i" * 64,
        name="n" * 128,
        description="é" * 500,
        version="é" * 64,
        category="/" + "c" * 60,
        inputs=("image",) * 8,
        placement=PlacementPolicy(required_labels={"site": "campus"}),
    )
    check_publishable(descriptor)
    record = service_record(
        descriptor,
        digest="sha256:" + "a" * 64,
        size=2**48,
        publisher=raw_public_key(key),
        seq=2**53,
        expiry=2**40,
        withdrawn=True,
    )
    assert sign(record, key).record == record
