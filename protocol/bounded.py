"""Everything from the network is bounded: a body is read up to a limit, and no further."""

from __future__ import annotations

from collections.abc import AsyncIterable

from protocol.problems import TooLarge


async def read_bounded(parts: AsyncIterable[bytes], limit: int, what: str) -> bytes:
    """All `parts` joined. Raises TooLarge as soon as they exceed `limit` bytes; `what` names them ("the answer")."""
    read = bytearray()
    async for part in parts:
        read += part
        if len(read) > limit:
            raise TooLarge(f"{what} has more than {limit} bytes")
    return bytes(read)
