"""What is wrong with a node that runs: in its log when it begins and ends, in `GET /v1/healthz` all the time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from protocol.problems import Problem
from protocol.records import CLOCK_SKEW_S

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 10.0
REMIND_S = 6 * 3600.0
"""The same trouble is told again after so long."""


def clock_warning(ahead_s: float) -> Problem | None:
    """What an operator should know of a clock that is so far ahead of (negative: behind) others', or nothing."""
    if abs(ahead_s) < CLOCK_SKEW_S / 2:
        return None
    side = "ahead of" if ahead_s > 0 else "behind"
    return Problem(
        f"this machine's clock is {abs(ahead_s):.0f} s {side} those of the nodes that it meets: beyond "
        f"{CLOCK_SKEW_S} s neither takes what the other publishes",
        fix="Set the clock here (for instance: timedatectl set-ntp true), or there if this one is right.",
    )


class Told:
    """Which warnings were told. Pure: the time is handed in."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}

    def news(self, problems: Sequence[Problem], now: float) -> tuple[list[Problem], list[str]]:
        """Those to tell now, and the fixes of those that have gone. Trouble with the same fix is the same trouble."""
        new = [p for p in problems if now - self._at.get(p.fix, -REMIND_S) >= REMIND_S]
        gone = sorted(set(self._at) - {p.fix for p in problems})
        for fix in gone:
            del self._at[fix]
        self._at |= {p.fix: now for p in new}
        return new, gone


async def tell_warnings(warnings: Callable[[], Sequence[Problem]]) -> None:
    """For ever."""
    told, loop = Told(), asyncio.get_running_loop()
    while True:
        new, gone = told.news(warnings(), loop.time())
        for problem in new:
            log.warning("node-warning", detail=problem.detail, fix=problem.fix)
        for fix in gone:
            log.info("node-warning-over", was=fix)
        await asyncio.sleep(LOOK_EVERY_S)
