"""What `seed` says of who fetches."""

from __future__ import annotations

from dht.traffic import ContentStats
from node.cli.serving import fetched_since


def stats(**sent: int) -> ContentStats:
    return ContentStats(
        blobs=1,
        stored_bytes=0,
        quota_bytes=0,
        uploads=0,
        transfers=0,
        damaged=0,
        received={},
        sent={("n1", "manifest"): 99} | {(peer, "chunk"): count for peer, count in sent.items()},
    )


def test_only_what_was_added_is_told() -> None:
    seen, added = fetched_since({}, stats(n1=10))
    assert added == [("n1", 10)]
    seen, added = fetched_since(seen, stats(n1=10, n2=5))
    assert added == [("n2", 5)]
    assert fetched_since(seen, stats(n1=10, n2=5))[1] == []
