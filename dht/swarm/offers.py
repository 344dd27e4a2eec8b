"""Signed provider records that travel from node to node without the directory."""

from __future__ import annotations

from dht import rules
from protocol.problems import InvalidRecord
from protocol.records import ProviderRecord, verify


def offer_of(envelope: bytes, digest: str, now: float) -> ProviderRecord:
    """Whose signed word it is that it serves `digest`. `now`: Unix seconds. Raises InvalidRecord."""
    record = verify(envelope).record
    rules.accept(record, now)
    if not isinstance(record, ProviderRecord) or record.content != digest or record.withdrawn:
        raise InvalidRecord("the record does not offer this content")
    return record
