"""How long a transfer goes on while it gets nowhere. Pure: the time is handed in.

The picker sees each provider for itself: one that claims chunks and then lacks them, again and again, that is always
busy, or sends a byte a second, looks as if it might still bring something. Seen from the transfer, nothing comes.

To be told to wait is no progress. A provider with too much to do says how long a turn may take to come
(`dht.swarm.slots`), and is waited for so long, but no longer than a whole chunk may take: to promise costs a liar
nothing. To be sent elsewhere is none either: who gets nothing there asks for the chunks themselves, which no honest
holder refuses then.
"""

from __future__ import annotations

STUCK_S = 30.0
LEAST_BYTES = 32 << 10
"""Fewer bytes in STUCK_S are no progress, whole chunks or not."""
BARREN_S = 120.0
"""Without a single whole chunk in so long, bytes do not count either: who sends them always breaks off. Nor does any
promise."""
THIN_S = 10.0
"""After so long without progress a transfer is not sent elsewhere any more."""


class Patience:
    def __init__(self, now: float) -> None:
        self._moved_at = now
        self._fruit_at = now
        self._promised_s = 0.0
        self._bytes = 0

    def heard(self, size: int, now: float) -> None:
        """So many bytes came, whole chunks or not."""
        self._bytes += size
        if self._bytes >= LEAST_BYTES:
            self._move(now)

    def gained(self, now: float) -> None:
        """A chunk was kept."""
        self._move(now)
        self._fruit_at = now

    def _move(self, now: float) -> None:
        self._bytes, self._moved_at, self._promised_s = 0, now, 0.0

    def promised(self, within_s: float) -> None:
        """A busy provider says that who waits gets something within this time, from when it began to wait. To say so
        again changes nothing."""
        self._promised_s = max(self._promised_s, within_s)

    def is_thin(self, now: float) -> bool:
        """Too little comes to leave it at that."""
        return now - self._moved_at > THIN_S

    def is_over(self, now: float) -> bool:
        return now - self._moved_at > max(STUCK_S, self._promised_s) or now - self._fruit_at > BARREN_S
