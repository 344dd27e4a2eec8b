"""Chunking, wire format, pacing, reputation."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.blobs.chunking import MAX_SIZE, MIN_SIZE, compiled_cutter, manifest_of
from dht.swarm.content_wire import decode_asked, decode_have, encode_asked, encode_have
from dht.swarm.reputation import LAGGARD_S, LIAR_S, MAX_REMEMBERED, Reputation
from dht.swarm.traffic import MAX_PEERS_COUNTED, OTHER_PEERS, ByteCounts, TokenBucket, Uploads
from protocol.identifiers import digest_of
from protocol.manifest import Chunk, Manifest
from protocol.problems import BadRequest, ConfigError, CorruptContent, TooManyRequests
from protocol.records import ProviderRecord
from tests.content_sites import a_file, node_name, noise


def test_a_manifest_lists_the_file_in_order(tmp_path: Path) -> None:
    data = noise(3_000_000)
    heard: list[int] = []
    manifest = manifest_of(a_file(tmp_path / "blob", data), heard.append)
    assert (manifest.digest, manifest.size, heard[-1]) == (digest_of(data), len(data), len(data))
    offset = 0
    for chunk in manifest.chunks:
        assert chunk.digest == digest_of(data[offset : offset + chunk.length])
        assert chunk.length <= MAX_SIZE
        offset += chunk.length
    assert all(chunk.length >= MIN_SIZE for chunk in manifest.chunks[:-1])
    assert Manifest.decode(manifest.encode(), digest=manifest.digest) == manifest


def test_the_pure_python_cutter_is_refused() -> None:
    pure = type("FastCDC", (), {"__module__": "pyfastcdc.py.fastcdc"})
    with pytest.raises(ConfigError, match="compiled"):
        compiled_cutter(pure)


def a_manifest(count: int) -> Manifest:
    return Manifest(digest_of(b"blob"), count, tuple(Chunk(digest_of(bytes([i])), 1) for i in range(count)))


@given(st.lists(st.booleans(), max_size=40))
def test_which_chunks_are_here_survives_the_wire(present: list[bool]) -> None:
    manifest = a_manifest(len(present))
    assert decode_have(encode_have(manifest, present), manifest) == {i for i, here in enumerate(present) if here}


def test_the_first_chunk_is_the_highest_bit() -> None:
    _, bits = msgspec.msgpack.decode(encode_have(a_manifest(9), [True] + [False] * 7 + [True]))
    assert bits == b"\x80\x80"


@pytest.mark.parametrize("data", [b"", b"\x90", b"\xff" * 100, encode_have(a_manifest(3), [True] * 3)])
def test_a_list_of_chunks_for_another_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptContent):
        decode_have(data, a_manifest(4))


@pytest.mark.parametrize(
    "data",
    [b"", msgspec.msgpack.encode([]), msgspec.msgpack.encode([["../etc"]]), encode_asked([digest_of(b"")] * 65)[4:]],
)
def test_a_malformed_request_for_chunks_is_refused(data: bytes) -> None:
    with pytest.raises(BadRequest):
        decode_asked(data)


def test_the_bucket_lets_a_burst_pass_then_holds_the_rate() -> None:
    bucket = TokenBucket(1000.0)
    assert bucket.take(250, 0.0) == 0.0
    assert bucket.take(1000, 0.0) == pytest.approx(1.0)
    assert bucket.take(1000, 0.0) == pytest.approx(2.0)
    assert bucket.take(250, 30.0) == 0.0
    assert bucket.take(500, 30.0) == pytest.approx(0.5)


def test_no_rate_is_no_limit() -> None:
    assert TokenBucket(0.0).take(1 << 40, 0.0) == 0.0


def test_slots_are_given_back() -> None:
    uploads = Uploads(slots=1, rate=0.0, clock=lambda: 0.0)
    with uploads.slot("peer"), pytest.raises(TooManyRequests) as caught, uploads.slot("peer"):
        pass
    assert caught.value.retry_after == 0.25
    with uploads.slot("peer"):
        assert uploads.busy == 1


def test_byte_counts_do_not_grow_with_the_number_of_peers() -> None:
    counts = ByteCounts()
    for number in range(MAX_PEERS_COUNTED + 50):
        counts.add(str(number), "chunk", 10)
    counts.add("0", "chunk", 5)
    assert counts.snapshot()["0", "chunk"] == 15
    assert counts.snapshot()[OTHER_PEERS, "chunk"] == 500


def record(number: int) -> ProviderRecord:
    return ProviderRecord(digest_of(b""), node_name(number), ("h:1",), 0, 0)


def test_liars_are_not_used_and_laggards_only_when_nobody_else_is_left() -> None:
    reputation = Reputation()
    reputation.lied(node_name(1), 0.0)
    reputation.lagged(node_name(2), 0.0)
    assert reputation.usable([record(1), record(2), record(3)], 1.0) == [record(3)]
    assert reputation.usable([record(1), record(2)], 1.0) == [record(2)]
    assert reputation.usable([record(1)], 1.0) == []
    assert reputation.usable([record(2), record(3)], LAGGARD_S) == [record(2), record(3)]
    assert reputation.usable([record(1)], LIAR_S) == [record(1)]


def test_what_is_remembered_is_bounded() -> None:
    reputation = Reputation()
    for number in range(MAX_REMEMBERED + 1):
        reputation.lied(node_name(number), 0.0)
    assert not reputation.is_liar(node_name(0), 1.0)
    assert reputation.is_liar(node_name(MAX_REMEMBERED), 1.0)
