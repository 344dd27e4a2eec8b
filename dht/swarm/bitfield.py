"""Which chunks of a manifest a node has, as bits on the wire: bit 7 of byte 0 is the first chunk, unused bits are 0.

Every meeting carries one for each member of a crowd, and all pass the event loop: so the loops over chunks run in C, by
way of a number in base 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import compress

_DIGIT_OF = bytes.maketrans(b"\0\1", b"01")
_TRUTH_OF = bytes.maketrans(b"01", b"\0\1")


def bitfield(present: Sequence[bool]) -> bytes:
    """`present`: for each position, whether its chunk is there."""
    return _packed(bytes(present))


def bitfield_of(positions: Iterable[int], count: int) -> bytes:
    """The chunks at these positions, of `count`; any beyond are left out."""
    present = bytearray(count)
    for position in positions:
        if position < count:
            present[position] = 1
    return _packed(bytes(present))


def positions_in(bits: bytes, count: int) -> set[int]:
    """Of the bits that are set. Raises ValueError if they are not as many as `count` chunks need."""
    if len(bits) != (count + 7) // 8:
        raise ValueError(f"{len(bits)} bytes are not the bits of {count} chunks")
    digits = f"{int.from_bytes(bits, 'big'):0{8 * len(bits)}b}".encode()
    return set(compress(range(count), digits.translate(_TRUTH_OF)))


def _packed(truths: bytes) -> bytes:
    """`truths`: a byte of 0 or 1 for each position."""
    size = (len(truths) + 7) // 8
    digits = truths.translate(_DIGIT_OF).ljust(8 * size, b"0")
    return int(digits or b"0", 2).to_bytes(size, "big")
