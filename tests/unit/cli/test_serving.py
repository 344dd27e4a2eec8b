"""What `seed` says of who fetches."""

from __future__ import annotations

import gc
import resource
import time

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dht.swarm.traffic import ContentStats
from node.cli.serving import (
    MAX_OPEN_FILES,
    controller_note,
    fetched_since,
    next_steps,
    open_file_limit,
    publisher_of,
    set_imports_aside,
)
from protocol.records import ServiceRecord, Signed, raw_public_key, sign


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


def test_only_what_this_node_can_do_is_proposed() -> None:
    founder = next_steps(founder=True, rest="http://10.1.0.10:7400")
    assert "bootstrap invite" in founder
    assert "http://10.1.0.10:7400/" in founder
    agent = next_steps(founder=False, rest="")
    assert "cornerstore status" in agent
    assert "invite" not in agent
    assert "browser" not in agent


def test_an_agent_says_whether_it_found_its_controller() -> None:
    assert "10.1.0.10:7401" in controller_note("10.1.0.10:7401", "eu/a")
    assert "goes on looking" in controller_note(None, "eu/a")


class Records:
    """A directory that knows these."""

    def __init__(self, *records: Signed) -> None:
        self._records = records

    async def services(self, name: str) -> list[Signed]:
        return [r for r in self._records if name in r.record.names]


async def test_only_a_record_that_stands_makes_another_needless() -> None:
    key = Ed25519PrivateKey.generate()
    standing = ServiceRecord(
        digest="sha256:" + "1" * 64,
        id="wc01",
        name="wordcount",
        description="",
        category="/text",
        inputs=(),
        outputs=(),
        size=1,
        mem=1,
        publisher=raw_public_key(key),
        version="",
        seq=1,
        expiry=int(time.time()) + 100,
    )
    assert await publisher_of(Records(sign(standing, key)), standing.digest) == raw_public_key(key).hex()
    for over in ({"withdrawn": True}, {"expiry": int(time.time()) - 1}, {"digest": "sha256:" + "2" * 64}):
        directory = Records(sign(msgspec.structs.replace(standing, **over), key))
        assert await publisher_of(directory, standing.digest) is None


@pytest.mark.parametrize(
    ("soft", "hard", "allowed"),
    [
        (1024, 524_288, MAX_OPEN_FILES),
        (1024, 4096, 4096),
        (1024, resource.RLIM_INFINITY, MAX_OPEN_FILES),
        (1_000_000, 1_000_000, 1_000_000),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, resource.RLIM_INFINITY),
    ],
)
def test_a_node_opens_as_many_files_as_it_may_and_never_fewer_than_before(soft: int, hard: int, allowed: int) -> None:
    assert open_file_limit(soft, hard) == allowed


def test_a_full_collection_walks_through_nothing_of_the_program_itself() -> None:
    imported = len(gc.get_objects())
    try:
        set_imports_aside()
        assert len(gc.get_objects()) < imported / 20
        cycle: list[object] = []
        cycle.append(cycle)
        del cycle
        assert gc.collect() > 0, "what comes later is collected as ever"
    finally:
        gc.unfreeze()
