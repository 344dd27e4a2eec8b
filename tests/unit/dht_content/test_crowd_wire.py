"""What nodes that fetch one blob tell each other."""

from __future__ import annotations

import time

import msgspec
import pytest

from dht.swarm.content_wire import encode_have
from dht.swarm.crowd import Member
from dht.swarm.crowd_wire import MAX_ABOUT_OTHERS, MAX_HEARD, decode_heard, decode_told, encode_heard, encode_told
from dht.swarm.offers import offer_of
from protocol.identifiers import digest_of
from protocol.manifest import Chunk, Manifest
from protocol.problems import BadRequest, CorruptContent, InvalidRecord
from protocol.records import ProviderRecord, sign
from tests.content_sites import node_name, site_key

BLOB = digest_of(b"blob")


def a_manifest(count: int) -> Manifest:
    return Manifest(BLOB, count, tuple(Chunk(digest_of(str(i).encode()), 1) for i in range(count)))


def test_what_is_told_and_heard_survives_the_wire() -> None:
    manifest = a_manifest(10)
    present = [i % 3 == 0 for i in range(10)]
    assert decode_told(encode_told(manifest, present, b"offer"), manifest) == ({0, 3, 6, 9}, b"offer")
    others = [Member("a", b"offer-a", frozenset({1, 9}), 0.0), Member("b", b"", frozenset({2}), 0.0)]
    heard = decode_heard(encode_heard(manifest, present, [i < 2 for i in range(10)], others), manifest)
    assert (heard.held, heard.elsewhere) == ({0, 3, 6, 9}, {0, 1})
    assert heard.others == ((b"offer-a", {1, 9}),), "who made no offer is named to nobody"


def test_an_answer_is_bounded_however_large_blob_and_crowd_are() -> None:
    manifest = a_manifest(40_000)
    present = [True] * 40_000
    others = [Member(str(i), bytes(1024), frozenset(range(40_000)), 0.0) for i in range(64)]
    answer = encode_heard(manifest, present, present, others)
    assert len(answer) <= MAX_HEARD
    assert 0 < len(decode_heard(answer, manifest).others) <= MAX_ABOUT_OTHERS // 5000


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x90",
        b"\xff" * 50,
        msgspec.msgpack.encode([encode_have(a_manifest(3), [True] * 3), b"", []]),
        msgspec.msgpack.encode([encode_have(a_manifest(9), [True] * 9), b"\x00", []]),
        msgspec.msgpack.encode([encode_have(a_manifest(9), [True] * 9), b"\x00\x00", [[b"offer", b"\x00"]]]),
    ],
)
def test_malformed_answers_and_tellings_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptContent):
        decode_heard(data, a_manifest(9))
    with pytest.raises(BadRequest):
        decode_told(data, a_manifest(9))


def test_an_offer_is_a_live_signed_provider_record_of_the_content() -> None:
    def signed(content: str = BLOB, expiry: int = 100, *, withdrawn: bool = False) -> bytes:
        record = ProviderRecord(content, node_name(1), ("h:1",), 1, expiry, withdrawn)
        return sign(record, site_key(1)).envelope

    assert offer_of(signed(), BLOB, 50.0).node == node_name(1)
    for envelope in (signed(digest_of(b"other")), signed(withdrawn=True), signed(expiry=40), signed()[:-1] + b"\0"):
        with pytest.raises(InvalidRecord):
            offer_of(envelope, BLOB, 50.0)
    with pytest.raises(InvalidRecord):
        offer_of(signed(expiry=int(time.time()) + 10**6), BLOB, time.time())
