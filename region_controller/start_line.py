"""The line in which starts wait for their turn, or for room on an agent; `turns` says who is next.

A start waits no longer than its clients do, nor than the region lets anything wait, and leaves the line with the last
client that wants it. What cannot have its turn in time is refused at once, with the time at which it could.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from protocol.causes import Cause
from protocol.instances import Progress
from protocol.problems import NoCapacity, Overloaded, Problem
from region_controller.flights import Flight
from region_controller.refusals import retry_after_of
from region_controller.turns import Ticket, Turns
from region_controller.wanted import loop_time

LOOK_S = 0.5
"""Between two looks whether anybody still wants a start that waits."""


Room = tuple[NoCapacity, Callable[[], bool]]
"""The refusal that says that no agent has room now, and whether one has meanwhile."""


class StartLine:
    """`places`, `longest_s`: of the line. `slots`: how many starts may be under way at once, now."""

    def __init__(self, *, places: int, longest_s: float, slots: Callable[[], int]) -> None:
        self._turns = Turns(places=places)
        self._longest_s = longest_s
        self._slots = slots
        self._bells: dict[Ticket, asyncio.Event] = {}
        self._lost: set[Ticket] = set()
        self.refused = 0
        """Starts since the controller came up that found the line full, or too slow."""

    @property
    def waiting(self) -> int:
        return self._turns.waiting

    def patience_s(self, flight: Flight[Any], arrived: float) -> float:
        """How much longer a start may wait for its turn that has waited since `arrived`."""
        return min(flight.wanted_until, arrived + self._longest_s) - loop_time()

    def advance(self) -> None:
        """Something changed: a start ended, an agent has more room, one came or went."""
        for ticket in self._turns.call(self._slots(), loop_time()):
            self._bells[ticket].set()

    @asynccontextmanager
    async def turn(
        self,
        flight: Flight[Any],
        client: str,
        *,
        arrived: float,
        room: Room | None = None,
    ) -> AsyncIterator[Ticket]:
        """The block runs when it is the start's turn, and says by the ticket whether it uses it. `arrived`: when the
        start first came. `room`: no agent has any now.

        Raises Overloaded, or that refusal.
        """
        ticket = Ticket(client, arrived, room[1] if room else None)
        bell = self._bells[ticket] = asyncio.Event()
        self._turns.arrive(ticket)
        try:
            self.advance()
            if (loser := self._turns.crowded_out()) is not None:
                self._lost.add(loser)
                self._bells[loser].set()
            await self._called(ticket, bell, flight, room[0] if room else None)
            yield ticket
        finally:
            self._turns.leave(ticket, loop_time())
            self._lost.discard(ticket)
            del self._bells[ticket]
            self.advance()

    async def _called(
        self, ticket: Ticket, bell: asyncio.Event, flight: Flight[Any], no_room: NoCapacity | None
    ) -> None:
        """Until its turn has come. Raises as `turn` does."""
        said = ""
        while ticket.called_at is None:
            ahead = self._turns.ahead(ticket)
            wait_s = self._turns.wait_s(ahead, self._slots())
            left_s = self.patience_s(flight, ticket.arrived)
            if (
                ticket in self._lost
                or not flight.wanted()
                or left_s <= 0
                or (no_room is None and (wait_s or 0) > left_s)
            ):
                self.refused += 1
                raise no_room or self._overloaded(ahead, wait_s, 0.0 if ticket in self._lost else left_s)
            if (saying := _told(ahead, wait_s, no_room)) != said:
                flight.progress(Progress("place", said := saying))
            bell.clear()
            try:
                async with asyncio.timeout(min(LOOK_S, left_s)):
                    await bell.wait()
            except TimeoutError:
                continue

    def _overloaded(self, ahead: int, wait_s: float | None, left_s: float) -> Overloaded:
        """A place is free when all that wait now have begun; a turn comes in time when the line is so much shorter."""
        return Overloaded(
            f"{self._turns.under_way} services are being started here, and {self._turns.waiting} starts wait; "
            f"this one would be number {ahead + 1}" + ("" if wait_s is None else f", in about {wait_s:.0f} s"),
            fix="Ask again then, or use a service that runs already.",
            cause=Cause.BUSY,
            retry_after=retry_after_of(None if wait_s is None else wait_s - max(0.0, left_s)),
        )


def _told(ahead: int, wait_s: float | None, no_room: Problem | None) -> str:
    if no_room is not None:
        return f"waiting until an agent has room: {no_room.detail}"
    about = "" if wait_s is None else f", about {math.ceil(wait_s)} s"
    return f"waiting for its turn: {ahead} ahead{about}"
