"""Bytes of `POST /peer/content/{digest}/have`, by which nodes that fetch one blob meet. See docs/protocol.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from dht.swarm.bitfield import bitfield, bitfield_of
from dht.swarm.content_wire import MAX_HAVE, decode_have, encode_have, held_in
from dht.swarm.crowd import MAX_MEMBERS, Member
from protocol.manifest import Manifest
from protocol.problems import BadRequest, CorruptContent
from protocol.records import MAX_ENVELOPE

MAX_TOLD = MAX_HAVE + MAX_ENVELOPE + 256
MAX_ABOUT_OTHERS = 256 << 10
"""Bytes that an answer spends on other members, the most recently heard first."""
MAX_HEARD = 2 * MAX_HAVE + MAX_ABOUT_OTHERS + 1024
_OF_MEMBER = MAX_ENVELOPE + 16

_Envelope = Annotated[bytes, Meta(max_length=MAX_ENVELOPE)]
_Bits = Annotated[bytes, Meta(max_length=MAX_HAVE)]


class _Told(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    have: bytes
    offer: _Envelope


class _Other(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    offer: _Envelope
    bits: _Bits


class _Heard(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    have: bytes
    elsewhere: _Bits
    others: Annotated[tuple[_Other, ...], Meta(max_length=MAX_MEMBERS)]


_told_decoder = msgspec.msgpack.Decoder(_Told)
_heard_decoder = msgspec.msgpack.Decoder(_Heard)


@dataclass(frozen=True)
class Heard:
    """What a holder answers: positions it holds, those it sends elsewhere, and (signed offer, positions) of others.

    The offers are not verified yet.
    """

    held: set[int]
    elsewhere: set[int]
    others: tuple[tuple[bytes, set[int]], ...]


def encode_told(manifest: Manifest, present: Sequence[bool], offer: bytes) -> bytes:
    """`offer`: the envelope of the teller's provider record for the blob, or nothing: then it is named to nobody."""
    return msgspec.msgpack.encode(_Told(encode_have(manifest, present), offer))


def decode_told(data: bytes, manifest: Manifest) -> tuple[set[int], bytes]:
    """Raises BadRequest if it is malformed or speaks of another manifest."""
    try:
        told = _told_decoder.decode(data)
        return decode_have(told.have, manifest), told.offer
    except (msgspec.MsgspecError, CorruptContent) as error:
        raise BadRequest(f"malformed list of chunks: {error}") from None


def encode_heard(
    manifest: Manifest, present: Sequence[bool], elsewhere: Sequence[bool], others: Sequence[Member]
) -> bytes:
    count = len(manifest.chunks)
    room = MAX_ABOUT_OTHERS // (_OF_MEMBER + count // 8)
    named = tuple(_Other(m.offer, bitfield_of(m.held, count)) for m in others[:room] if m.offer)
    return msgspec.msgpack.encode(_Heard(encode_have(manifest, present), bitfield(elsewhere), named))


def decode_heard(data: bytes, manifest: Manifest) -> Heard:
    """Raises CorruptContent if it is malformed or speaks of another manifest."""
    count = len(manifest.chunks)
    try:
        heard = _heard_decoder.decode(data)
        others = tuple((other.offer, held_in(other.bits, count)) for other in heard.others)
        return Heard(decode_have(heard.have, manifest), held_in(heard.elsewhere, count), others)
    except msgspec.MsgspecError as error:
        raise CorruptContent(f"malformed answer about a crowd: {error}") from None
