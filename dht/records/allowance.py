"""How much each sender may send: a token bucket for each. Pure."""

from __future__ import annotations

from collections import OrderedDict

MAX_SENDERS = 8192


class Allowance:
    """`burst` tokens to begin with, `per_s` more each second, never more than `burst`."""

    def __init__(self, *, burst: float, per_s: float) -> None:
        self._burst = burst
        self._per_s = per_s
        self._left: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    def take(self, sender: bytes, now: float) -> bool:
        """Spend one token of the sender's, if it has one. `now` in seconds; it may stand still, or jump back."""
        left, at = self._left.get(sender, (self._burst, now))
        left = min(self._burst, left + max(0.0, now - at) * self._per_s)
        granted = left >= 1
        self._left[sender] = left - granted, now
        self._left.move_to_end(sender)
        if len(self._left) > MAX_SENDERS:
            self._left.popitem(last=False)
        return granted
