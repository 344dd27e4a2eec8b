"""Whether this machine's clock agrees with those of the nodes that it meets. Pure: times are handed in.

Records are dated: a node whose clock is off by more than a few minutes takes nobody's, and nobody takes its own, while
connections that are open go on as if nothing was.
"""

from __future__ import annotations

from email.utils import parsedate_to_datetime

HEARD_S = 600.0
"""What was heard longer ago says nothing any more."""
MAX_REMEMBERED = 64


class Clocks:
    """By how much this machine's clock is ahead of others', by their address."""

    def __init__(self) -> None:
        self._ahead: dict[str, tuple[float, float]] = {}

    def heard(self, address: str, date: str, wall: float, monotonic: float) -> None:
        """An answer came from `address` with this `Date` (RFC 9110, to the second), at our time `wall`."""
        try:
            theirs = parsedate_to_datetime(date).timestamp()
        except (ValueError, OverflowError):
            return
        self._ahead.pop(address, None)
        self._ahead[address] = (wall - theirs, monotonic)
        if len(self._ahead) > MAX_REMEMBERED:
            del self._ahead[next(iter(self._ahead))]

    def ahead(self, monotonic: float) -> float:
        """Seconds by which this clock is ahead of those met lately; negative: behind. Where they disagree, as much as
        half of them agree on: who has one of two on its side is not told to set its clock. 0: none met."""
        found = sorted((ahead for ahead, at in self._ahead.values() if monotonic - at < HEARD_S), key=abs)
        return found[(len(found) - 1) // 2] if found else 0.0
