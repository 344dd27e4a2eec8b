from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.problems import InvalidRecord
from protocol.records import MAX_ENVELOPE, ServiceRecord, check_publishable, raw_public_key, service_record, sign
from protocol.service import PlacementPolicy, ServiceDescriptor


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
    descriptor = a_descriptor(placement=PlacementPolicy(required_labels={"site": "campus", "gpu": "yes"}))
    record = service_record(descriptor, digest="d", size=1, publisher=b"", seq=1, expiry=1)
    assert record.labels == (("gpu", "yes"), ("site", "campus"))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"inputs": tuple(f"type{n}" for n in range(9))}, "inputs"),
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
