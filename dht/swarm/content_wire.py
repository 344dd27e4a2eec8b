"""Bytes of the content endpoints that both ends must agree on. See docs/protocol.md.

Chunks move over connections of their own to the node-to-node port, told from HTTP by `OPENING`, the first bytes of the
client; then comes TLS. One request after another, each answered before the next:

    request   length uint32, big-endian; msgpack `Asked`
    answer    length uint32 of a problem (JSON, RFC 9457), and that problem; or 0, and for each digest asked, in order:
              length   uint32; 0: this node does not have the chunk; 0xffffffff: ask others of the crowd for it
              bytes    `length` bytes, the chunk
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from dht.swarm.bitfield import bitfield, positions_in
from protocol.identifiers import digest_of
from protocol.manifest import MAX_MANIFEST, Manifest
from protocol.problems import BadRequest, CorruptContent, Problem
from protocol.records import Digest

OPENING = b"\0cornerstore-content/1\n"
"""No TLS record and no HTTP request begins with this byte."""
LENGTH = struct.Struct(">I")
CHUNK_HEADER = LENGTH
NO_PROBLEM = LENGTH.pack(0)
ELSEWHERE = 0xFFFF_FFFF
"""Instead of a length: others of the crowd got this chunk a moment ago and pass it on."""
MAX_CHUNKS_ASKED = 64
MAX_REQUEST = 8 << 10
MAX_HAVE = MAX_MANIFEST // 8
MAX_PROMISE_S = 3600.0

WHOLE_HEADER = "Cornerstore-Whole"
"""Of an answer with a manifest: `1` if the peer has all chunks, so that nobody needs to ask which."""


def framed_size(length: int) -> int:
    """Bytes of one chunk's part of an answer. `length`: as the answer says it, 0 and ELSEWHERE included."""
    return CHUNK_HEADER.size + (0 if length == ELSEWHERE else length)


class Have(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """msgpack `[digest of the encoded manifest, bits]`; see `dht.swarm.bitfield`."""

    manifest: Digest
    bits: Annotated[bytes, Meta(max_length=MAX_HAVE)]


class Asked(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """msgpack `[chunk digests, crowd]`. `crowd`: the blob they are wanted for, if the asker may be sent elsewhere."""

    chunks: Annotated[tuple[Digest, ...], Meta(min_length=1, max_length=MAX_CHUNKS_ASKED)]
    crowd: Digest | None = None


_asked_decoder = msgspec.msgpack.Decoder(Asked)


def encode_have(manifest: Manifest, present: Sequence[bool]) -> bytes:
    return msgspec.msgpack.encode(Have(digest_of(manifest.encode()), bitfield(present)))


def decode_have(data: bytes, manifest: Manifest) -> set[int]:
    """Positions that the peer holds. Raises CorruptContent if it speaks of another manifest or is malformed."""
    try:
        have = msgspec.msgpack.decode(data, type=Have)
    except msgspec.MsgspecError as error:
        raise CorruptContent(f"malformed list of chunks: {error}") from None
    if have.manifest != digest_of(manifest.encode()):
        raise CorruptContent("the peer cut the content in another way")
    return held_in(have.bits, len(manifest.chunks))


def held_in(bits: bytes, count: int) -> set[int]:
    """Positions of the bits that are set. Raises CorruptContent if they are not `count`."""
    try:
        return positions_in(bits, count)
    except ValueError:
        raise CorruptContent("the peer cut the content in another way") from None


def encode_asked(digests: Iterable[str], crowd: str | None = None) -> bytes:
    """With its length in front."""
    body = msgspec.msgpack.encode(Asked(tuple(digests), crowd))
    return LENGTH.pack(len(body)) + body


def decode_asked(body: bytes) -> Asked:
    """Raises BadRequest."""
    try:
        return _asked_decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise BadRequest(f"malformed list of chunks: {error}") from None


def promise_in(problem: Problem) -> float:
    """Within how many seconds a busy peer promises a turn; 0 if it does not, or says nonsense."""
    within_s = problem.extra.get("within_s")
    return float(within_s) if isinstance(within_s, int | float) and 0 <= within_s <= MAX_PROMISE_S else 0.0


def encode_problem(problem: Problem) -> bytes:
    """With its length in front."""
    body = msgspec.json.encode(problem.to_dict())
    return LENGTH.pack(len(body)) + body
