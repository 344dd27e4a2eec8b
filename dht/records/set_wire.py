"""How a whole set of records travels over HTTP: `uint16 length || envelope` for each, in the order of positions.

    GET /peer/records/{key, 40 hex digits}?after={position, up to 16 hex digits}

The answer says its length, and holds what the node has at the key after that position. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from dht import ordering, rules
from protocol.problems import BadRequest, CorruptContent
from protocol.records import MAX_ENVELOPE

LENGTH = struct.Struct(">H")
MAX_RECORDS = 2 * rules.MAX_PER_KEY
"""Envelopes that a reader takes of one set: what may stand at a key, and as much again of the holder's own."""


def path_of(key: bytes, after: bytes) -> str:
    return f"/peer/records/{key.hex()}?after={after.hex()}"


def position_in(text: str) -> bytes:
    """Raises BadRequest."""
    try:
        after = bytes.fromhex(text)
    except ValueError:
        after = bytes(ordering.POSITION_BYTES + 1)
    if len(after) > ordering.POSITION_BYTES:
        raise BadRequest(f"{text[:40]!r} is no position: at most {2 * ordering.POSITION_BYTES} hex digits")
    return after


def encoded(envelopes: Iterable[bytes]) -> bytes:
    return b"".join(part for envelope in envelopes for part in (LENGTH.pack(len(envelope)), envelope))


def encoded_size(envelopes: Sequence[bytes]) -> int:
    return sum(map(len, envelopes)) + LENGTH.size * len(envelopes)


class SetDecoder:
    """Cuts what a peer sends into envelopes, and holds it to their order: so nothing comes twice, and what came is
    known to end at `position`."""

    def __init__(self, after: bytes) -> None:
        self.position = after
        self._rest = b""
        self._count = 0

    @property
    def is_between(self) -> bool:
        """True if the last envelope came to its end."""
        return not self._rest

    def feed(self, data: bytes) -> list[bytes]:
        """The envelopes that `data` completes. Raises CorruptContent for what no holder sends."""
        data, envelopes, at = self._rest + data, [], 0
        while len(data) - at >= LENGTH.size:
            (length,) = LENGTH.unpack_from(data, at)
            if not 0 < length <= MAX_ENVELOPE:
                raise CorruptContent(f"a record of {length} bytes in a set")
            end = at + LENGTH.size + length
            if end > len(data):
                break
            envelopes.append(self._in_order(data[at + LENGTH.size : end]))
            at = end
        self._rest = data[at:]
        self._count += len(envelopes)
        if self._count > MAX_RECORDS:
            raise CorruptContent(f"a set of more than {MAX_RECORDS} records")
        return envelopes

    def _in_order(self, envelope: bytes) -> bytes:
        place = ordering.position(envelope)
        if place <= self.position:
            raise CorruptContent("a set that is not in the order of its positions")
        self.position = place
        return envelope
