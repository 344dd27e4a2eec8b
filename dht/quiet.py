"""Trouble that comes again and again is told once. Pure: the time is handed in."""

from __future__ import annotations

QUIET_S = 600.0
MAX_REMEMBERED = 64


class Quiet:
    """Remembers what was said lately, for `QUIET_S`."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}

    def may_say(self, what: str, now: float) -> bool:
        """True the first time, and again when it was last said QUIET_S ago."""
        if now - self._said.get(what, -QUIET_S) < QUIET_S:
            return False
        self._said.pop(what, None)
        self._said[what] = now
        if len(self._said) > MAX_REMEMBERED:
            del self._said[next(iter(self._said))]
        return True
