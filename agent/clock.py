"""What time it is, and whether the machine's clock was set meanwhile.

Deadlines are Unix times: they hold across restarts, and phones and controllers read them. The clock that shows Unix
time is set now and then: a small machine without a battery wakes up in 1970 until it has asked a time server, an
operator corrects an hour, a laptop sleeps. The monotonic clock tells: it goes on by the seconds that services ran.
"""

from __future__ import annotations

from collections.abc import Callable

SET_S = 2.0
"""A difference from one reading to the next that no drift explains; readings are never far apart."""


def set_by(wall_s: float, monotonic_s: float) -> float:
    """By how much the clock was set, if it went on by `wall_s` while `monotonic_s` passed; 0 for drift."""
    by_s = wall_s - monotonic_s
    return by_s if abs(by_s) >= SET_S else 0.0


class Clock:
    """`wall` shows Unix time, `monotonic` is never set. `read` them often: what is set is seen from one reading to the
    next."""

    def __init__(self, wall: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._last = wall(), monotonic()

    def read(self) -> tuple[float, float]:
        """Unix time, and by how much it was set since the last reading."""
        before, self._last = self._last, (self._wall(), self._monotonic())
        return self._last[0], set_by(self._last[0] - before[0], self._last[1] - before[1])
