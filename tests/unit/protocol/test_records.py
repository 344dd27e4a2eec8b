from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.records import ServiceRecord, raw_public_key, service_record, sign
from protocol.service import ServiceDescriptor


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
