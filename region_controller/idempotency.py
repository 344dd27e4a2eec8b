"""Idempotency keys: a repeated request is the same request, one piece of work and one answer per `request_key`.

The term is that of draft-ietf-httpapi-idempotency-key-header.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable

import msgspec

from dht.tasks import OwnedTasks
from protocol.instances import OnProgress, StartAnswer, StartRequest
from protocol.problems import Conflict
from region_controller.flights import Flights, Present, always

REMEMBER_S = 600.0
MARGIN_S = 0.5
"""The work keeps the request's `wait_s` itself, and shall have the time to say why it was not enough."""
MAX_REMEMBERED = 10_000
"""Answers kept for repeated request keys."""

Answered = tuple[StartAnswer, bool]
"""The answer, and whether the instance was started for this very request."""


class IdempotencyKeys:
    """Keys are scoped by who sends them: the node id of a controller, empty for phones. `clock` in s."""

    def __init__(self, tasks: OwnedTasks, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._flights: Flights[Answered] = Flights(tasks)
        self._answered: OrderedDict[tuple[str, str], tuple[StartRequest, Answered, float]] = OrderedDict()

    async def once(
        self,
        who: str,
        request: StartRequest,
        on_progress: OnProgress,
        work: Callable[[OnProgress, Present], Awaitable[Answered]],
        present: Present = always,
    ) -> Answered:
        """`present`: whether the sender is still there; the work is told of all who wait for it."""
        if request.request_key is None:
            return await work(on_progress, present)
        key = (who, request.request_key)
        if known := self._answered.get(key):
            first, answered, at = known
            if self._clock() - at <= REMEMBER_S:
                if _content(first) == _content(request):
                    return answered
                raise Conflict("the request key was used for another request", fix="Use a new key for each request.")
        flight, _ = self._flights.join(
            (key, _content(request)), lambda flight: self._remember(key, request, work(flight.progress, flight.wanted))
        )
        return await flight.wait(on_progress, request.wait_s + MARGIN_S, present)

    async def _remember(self, key: tuple[str, str], request: StartRequest, work: Awaitable[Answered]) -> Answered:
        answered, now = await work, self._clock()
        self._answered[key] = (request, answered, now)
        self._answered.move_to_end(key)
        while len(self._answered) > MAX_REMEMBERED or next(iter(self._answered.values()))[2] < now - REMEMBER_S:
            self._answered.popitem(last=False)
        return answered


def _content(request: StartRequest) -> bytes:
    """The deadline does not make a request another one."""
    return msgspec.json.encode(msgspec.structs.replace(request, wait_s=1.0))
