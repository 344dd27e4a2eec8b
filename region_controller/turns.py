"""Who starts next, where more is asked for than can be started at once. Pure: times are handed in.

So many starts are under way at once; the others wait in a line of bounded length. Clients share both: next is the
client with the fewest starts under way, of equals the one that has waited for longest. Where the line is too long, the
client with the most places in it loses its newest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

SMOOTHING = 0.2
"""What the newest start counts in the mean of how long one takes."""


class Ticket:
    """A start that waits or is under way. `fits`: whether an agent has room for it, None if that is known already."""

    def __init__(self, client: str, arrived: float, fits: Callable[[], bool] | None = None) -> None:
        self.client = client
        self.arrived = arrived
        self.fits = fits
        self.called_at: float | None = None
        """When its turn came."""
        self.began = False
        """Whether it used its turn: there may be nothing left to start by then."""


class Turns:
    """`places`: of the line. `took_s`: how long a start takes, as the last ones show; None before the first."""

    def __init__(self, *, places: int) -> None:
        self._places = places
        self._waiting: list[Ticket] = []
        self._under_way: set[Ticket] = set()
        self.took_s: float | None = None

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def under_way(self) -> int:
        return len(self._under_way)

    def arrive(self, ticket: Ticket) -> None:
        """It waits from now on. One that comes back keeps the place of its first arrival."""
        self._waiting.append(ticket)
        self._waiting.sort(key=lambda one: one.arrived)

    def call(self, slots: int, now: float) -> list[Ticket]:
        """Those whose turn has come, in order, if `slots` starts may be under way at once.

        What a ticket with a condition takes is only known once it has begun: one of them at a time.
        """
        called: list[Ticket] = []
        taken = False
        while len(self._under_way) < slots:
            ticket = next((t for t in self._in_turn() if t.fits is None or (not taken and t.fits())), None)
            if ticket is None:
                break
            taken = taken or ticket.fits is not None
            self._waiting.remove(ticket)
            self._under_way.add(ticket)
            ticket.called_at = now
            called.append(ticket)
        return called

    def crowded_out(self) -> Ticket | None:
        """Who must leave because the line is too long, if it is."""
        if len(self._waiting) <= self._places:
            return None
        places = Counter(ticket.client for ticket in self._waiting)
        loser = max(self._waiting, key=lambda ticket: (places[ticket.client], ticket.arrived))
        self._waiting.remove(loser)
        return loser

    def leave(self, ticket: Ticket, now: float) -> None:
        """Its start is over, or it waits no more."""
        if ticket in self._under_way:
            self._under_way.remove(ticket)
            if not ticket.began:
                return
            took_s = now - (ticket.called_at or now)
            self.took_s = took_s if self.took_s is None else self.took_s + SMOOTHING * (took_s - self.took_s)
        elif ticket in self._waiting:
            self._waiting.remove(ticket)

    def ahead(self, ticket: Ticket) -> int:
        """How many have waited for longer."""
        return sum(1 for other in self._waiting if other.arrived < ticket.arrived)

    def wait_s(self, ahead: int, slots: int) -> float | None:
        """When the turn comes of one that has so many ahead, at the rate of the last starts; None if none ended yet."""
        return None if self.took_s is None else (ahead + 1) * self.took_s / max(1, slots)

    def _in_turn(self) -> list[Ticket]:
        busy = Counter(ticket.client for ticket in self._under_way)
        return sorted(self._waiting, key=lambda ticket: (busy[ticket.client], ticket.arrived))
