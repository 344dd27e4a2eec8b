"""How often one address may guess a secret. Pure: the time is handed in."""

from __future__ import annotations

from protocol.problems import TooManyRequests

ALLOWED = 10
REFILL_S = 6.0
"""One more attempt every so often: ten a minute for who keeps guessing."""
MAX_TRACKED = 4096


class FailedAttempts:
    """A token bucket per remote address that only failures drain. The address heard longest ago is forgotten first."""

    def __init__(self, *, allowed: int = ALLOWED, refill_s: float = REFILL_S) -> None:
        self._allowed = allowed
        self._refill_s = refill_s
        self._failures: dict[str, tuple[float, float]] = {}

    def check(self, remote: str, now: float) -> None:
        """Raises TooManyRequests, with `retry_after`, while `remote` has failed too often."""
        level = self._level(remote, now)
        if level > self._allowed - 1:
            wait = (level - (self._allowed - 1)) * self._refill_s
            raise TooManyRequests(
                "too many failed attempts to join from this address",
                fix=f"Wait {wait:.0f} s, then use a new token.",
                retry_after=wait,
            )

    def failed(self, remote: str, now: float) -> None:
        level = self._level(remote, now) + 1
        self._failures.pop(remote, None)
        self._failures[remote] = (level, now)
        if len(self._failures) > MAX_TRACKED:
            del self._failures[next(iter(self._failures))]

    def _level(self, remote: str, now: float) -> float:
        level, since = self._failures.get(remote, (0.0, now))
        return max(0.0, level - max(0.0, now - since) / self._refill_s)
