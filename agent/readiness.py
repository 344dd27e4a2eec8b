"""Is a service there yet? A TCP connect to the container's own address, asked at a tight pace at first."""

from __future__ import annotations

import asyncio
import contextlib

MIN_DELAY_S = 0.002
MAX_DELAY_S = 0.1
SHARE = 0.02
"""Of the time waited so far: readiness is noticed at most a fiftieth late, and a slow service is not hammered. A probe
costs 0.2 ms of the processor."""

LOOK_S = 0.5
TELL_S = 2.0
"""Between two words to the controller of what is awaited, with the last lines of the log."""
CONNECT_S = 1.0


async def answers(host: str, port: int) -> bool:
    """True if something accepts a connection within a second."""
    try:
        async with asyncio.timeout(CONNECT_S):
            _, writer = await asyncio.open_connection(host, port)
    except OSError:  # TimeoutError is one
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


def delay_s(waited_s: float) -> float:
    """Until the next probe, when `waited_s` have passed since the first."""
    return min(max(MIN_DELAY_S, waited_s * SHARE), MAX_DELAY_S)


class Pace:
    """How long to wait between probes, and when to look at the engine, whose events may be late."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._begin = self._loop.time()
        self._look_at = self._begin + LOOK_S
        self._tell_at = self._begin + LOOK_S

    def look_due(self) -> bool:
        now = self._loop.time()
        if now < self._look_at:
            return False
        self._look_at = now + LOOK_S
        return True

    def tell_due(self) -> bool:
        now = self._loop.time()
        if now < self._tell_at:
            return False
        self._tell_at = now + TELL_S
        return True

    async def wait(self, changed: asyncio.Event) -> None:
        """Until something changed, or the next probe is due."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(changed.wait(), delay_s(self._loop.time() - self._begin))
