"""The constants of Kademlia in one place: who reads, stores and answers must agree on them."""

from __future__ import annotations

from msgspec import Struct

from dht.overlay.crawl import CrawlPolicy


class Tuning(Struct, frozen=True, kw_only=True):
    """Kademlia's constants. `k` bucket size; `alpha` questions at once; `replicas` nodes that keep a record;
    `acks` of them make a store good; `lookup_s` deadline of a lookup; `paging_s` that of a large set's
    further pages."""

    k: int = 20
    alpha: int = 4
    replicas: int = 8
    acks: int = 5
    lookup_s: float = 2.0
    paging_s: float = 10.0

    @property
    def policy(self) -> CrawlPolicy:
        return CrawlPolicy(self.replicas, self.alpha, self.acks)
