from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from protocol.bounded import read_bounded
from protocol.problems import TooLarge


class Parts:
    """Three parts of four bytes; counts how many were taken."""

    taken = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(3):
            self.taken += 1
            yield b"four"


async def test_a_body_of_just_the_limit_is_read_whole() -> None:
    assert await read_bounded(Parts(), 12, "the answer") == b"four" * 3


async def test_nothing_is_read_beyond_the_limit() -> None:
    parts = Parts()
    with pytest.raises(TooLarge, match="the answer has more than 7 bytes"):
        await read_bounded(parts, 7, "the answer")
    assert parts.taken == 2
