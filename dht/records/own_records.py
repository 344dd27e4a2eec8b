"""The records by which a node tells of itself: what it serves, and the region that it controls. Pure."""

from __future__ import annotations

from protocol.identifiers import check_region
from protocol.records import ProviderRecord, RegionRecord, last_moment

PROVIDER_LIFETIME_S = 1800
REGION_LIFETIME_S = 60


def provider_record(
    content: str, *, node: str, addresses: tuple[str, ...], seq: int, now: float, withdrawn: bool
) -> ProviderRecord:
    """`content`: a digest that was checked. `now` in Unix s. `withdrawn`: a tombstone, which lives as long as any."""
    expiry = last_moment("provider", seq) if withdrawn else int(now) + PROVIDER_LIFETIME_S
    return ProviderRecord(content=content, node=node, addresses=addresses, seq=seq, expiry=expiry, withdrawn=withdrawn)


def region_record(
    region: str,
    *,
    node: str,
    addresses: tuple[str, ...],
    agents: int,
    memory_total: int,
    memory_free: int,
    seq: int,
    now: float,
) -> RegionRecord:
    """Memory in MB, `now` in Unix s. Raises BadRequest for what is no region."""
    return RegionRecord(
        region=check_region(region),
        node=node,
        addresses=addresses,
        agents=agents,
        memory_total=memory_total,
        memory_free=memory_free,
        seq=seq,
        expiry=int(now) + REGION_LIFETIME_S,
    )
