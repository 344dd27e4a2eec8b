"""Bits of chunks: there and back, in the order that docs/protocol.md says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.swarm.bitfield import bitfield, bitfield_of, positions_in


@given(st.lists(st.booleans(), max_size=70))
def test_there_and_back(present: list[bool]) -> None:
    held = {position for position, is_here in enumerate(present) if is_here}
    bits = bitfield(present)
    assert bitfield_of(held, len(present)) == bits
    assert positions_in(bits, len(present)) == held


@given(st.binary(min_size=1, max_size=9), st.integers(0, 7))
def test_bits_beyond_the_last_chunk_mean_nothing(bits: bytes, unused: int) -> None:
    count = 8 * len(bits) - unused
    assert positions_in(bits, count) == {i for i in range(count) if bits[i // 8] & 0x80 >> i % 8}


def test_the_first_chunk_is_the_highest_bit() -> None:
    assert bitfield([True, False, False, False, False, False, False, False, False, True]) == b"\x80\x40"
    assert bitfield_of([0, 9, 10], 10) == b"\x80\x40"


@pytest.mark.parametrize(("bits", "count"), [(b"", 1), (b"\0", 0), (b"\0\0", 8), (b"\0", 9)])
def test_bits_of_another_number_of_chunks_are_refused(bits: bytes, count: int) -> None:
    with pytest.raises(ValueError, match="chunks"):
        positions_in(bits, count)
