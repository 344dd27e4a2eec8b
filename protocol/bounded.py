"""Everything from the network is bounded: a body is read up to a limit, and no further."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable

from protocol.problems import BadRequest, TooLarge


async def read_bounded(parts: AsyncIterable[bytes], limit: int, what: str) -> bytes:
    """All `parts` joined. Raises TooLarge as soon as they exceed `limit` bytes; `what` names them ("the answer")."""
    read = bytearray()
    async for part in parts:
        read += part
        if len(read) > limit:
            raise TooLarge(f"{what} has more than {limit} bytes")
    return bytes(read)


async def read_in_time(parts: AsyncIterable[bytes], limit: int, what: str, within_s: float) -> bytes:
    """The same for what a client sends: who holds back the rest holds a connection. Raises BadRequest, too."""
    try:
        async with asyncio.timeout(within_s):
            return await read_bounded(parts, limit, what)
    except TimeoutError:
        raise BadRequest(f"{what} did not arrive within {within_s:g} s", fix="Send it again.") from None
