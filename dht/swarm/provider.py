"""One provider of a transfer, as a picker sees it: what it offers, how fast it was, when it is asked again. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Provider:
    """`have` None: it holds the whole blob. Rates in bytes/s, times in s."""

    have: frozenset[int] | None
    near: bool = False
    """It is on this machine's own network: what it sends crosses no uplink."""
    fetches: bool = False
    """It fetches the same blob just now."""
    lacks: set[int] = field(default_factory=set)
    elsewhere: dict[int, float] = field(default_factory=dict)
    """Pieces that it lets others pass on, and until when it is not asked for them again."""
    requests: set[int] = field(default_factory=set)
    strikes: int = 0
    """Failures in a row."""
    rest_until: float = 0.0
    rate: float = 0.0
    measured_s: float = 0.0
    """How long it was at the requests that `rate` is of."""
    depth: int = 1 << 30
    """Requests at once that it takes, as far as it has said."""
    trouble: str = ""
    dropped: str = ""

    def offers(self, piece: int) -> bool:
        return (self.have is None or piece in self.have) and piece not in self.lacks

    def gives(self, piece: int, now: float) -> bool:
        """Whether to ask it now."""
        return self.offers(piece) and self.elsewhere.get(piece, now) <= now

    def does_well(self, now: float, enough_rate: float, measured_s: float) -> bool:
        """It answers, has room, and was not found slower than `enough_rate` in at least `measured_s`."""
        slow = self.measured_s >= measured_s and self.rate < enough_rate
        return self.rest_until <= now and not self.strikes and not self.dropped and not slow

    def showed(self, size: int, seconds: float) -> None:
        """One request brought so much in that time; half of what counts as the rate is what was shown before."""
        rate = size / seconds
        self.rate = rate if not self.rate else 0.5 * self.rate + 0.5 * rate
        self.measured_s += seconds

    def failed(self, now: float, why: str, *, rest_s: float, max_rest_s: float) -> bool:
        """It rests, twice as long after each failure in a row. False: it rests already, this is the same outage."""
        self.trouble = why
        if now < self.rest_until:
            return False
        self.strikes += 1
        self.rest_until = now + min(rest_s * 2 ** min(self.strikes - 1, 8), max_rest_s)
        return True

    def busy(self, now: float, retry_after: float, why: str, *, max_busy_s: float) -> None:
        """It refused a request. While it works on another one of ours it just takes fewer, else it rests."""
        self.trouble = why
        if self.requests:
            self.depth = len(self.requests)
        else:
            self.rest_until = now + min(max(retry_after, 0.05), max_busy_s)
