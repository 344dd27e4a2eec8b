"""Who may ask for a start now: so many a second from one client, so many at once from all of them.

What is too much is refused at once, with a time to come back: overload answers fast instead of slow.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dht.records.allowance import Allowance
from protocol.problems import TooManyRequests


class Admission:
    """`per_client_s` and `burst`: requests of one client address (0: any number). `at_once`: of all, under way."""

    def __init__(self, *, per_client_s: float, burst: int, at_once: int) -> None:
        self._allowance = Allowance(burst=burst, per_s=per_client_s) if per_client_s else None
        self._per_client_s = per_client_s
        self._at_once = at_once
        self._under_way = 0
        self.refused = 0
        """Requests since the controller came up."""

    @property
    def under_way(self) -> int:
        return self._under_way

    @property
    def slots(self) -> int:
        """How many more requests would be taken now."""
        return self._at_once - self._under_way

    @contextmanager
    def request(self, client: str, now: float) -> Iterator[None]:
        """For as long as the request is worked on. `now` in s. Raises TooManyRequests."""
        if self._under_way >= self._at_once:
            self.refused += 1
            raise TooManyRequests(
                f"{self._at_once} requests for services are under way here", fix="Ask again in a moment.", retry_after=2
            )
        if self._allowance is not None and not self._allowance.take(client.encode(), now):
            self.refused += 1
            raise TooManyRequests(
                f"{client} asks for services faster than {self._per_client_s:g} times a second",
                fix="Keep the address that a start answered, and call the service there.",
                retry_after=1,
            )
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
