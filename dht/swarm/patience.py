"""How long a transfer goes on while it gets nowhere. Pure: the time is handed in.

The picker sees each provider for itself: one that claims chunks and then lacks them, again and again, or sends a byte a
second, always looks as if it might still bring something. Seen from the transfer, nothing comes.
"""

from __future__ import annotations

STUCK_S = 30.0
LEAST_BYTES = 32 << 10
"""Fewer bytes in STUCK_S are no progress, whole chunks or not."""
BARREN_S = 120.0
"""Without a single whole chunk in so long, bytes do not count either: who sends them always breaks off."""


class Patience:
    def __init__(self, now: float) -> None:
        self._moved_at = now
        self._fruit_at = now
        self._bytes = 0

    def heard(self, size: int, now: float) -> None:
        """So many bytes came, whole chunks or not."""
        self._bytes += size
        if self._bytes >= LEAST_BYTES:
            self._bytes, self._moved_at = 0, now

    def gained(self, now: float) -> None:
        """A chunk was kept; or a provider said that it is busy, or that others have it: that is to be waited for."""
        self._bytes, self._moved_at, self._fruit_at = 0, now, now

    def is_over(self, now: float) -> bool:
        return now - self._moved_at > STUCK_S or now - self._fruit_at > BARREN_S
