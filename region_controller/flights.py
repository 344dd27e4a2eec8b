"""One piece of work for everyone who asks for the same thing at the same time.

A flight is owned by the controller, not by who asked first: a waiter that goes away leaves the others waiting. A
failure reaches every present waiter once; the next request begins anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import structlog

from dht.tasks import OwnedTasks
from protocol.instances import OnProgress, Progress
from protocol.problems import DeadlineExceeded, Problem, Unavailable

log = structlog.get_logger(__name__)

T = TypeVar("T")


Present = Callable[[], bool]
"""Whether who asked is still there."""


def always() -> bool:
    """For who cannot be seen leaving."""
    return True


class Flight(Generic[T]):
    """Use `Flights`. `wanted_until`: when the last who waits gives up, on the loop's clock. `instance`: the one that is
    being started, once there is one."""

    def __init__(self) -> None:
        self.wanted_until = 0.0
        self.instance: str | None = None
        self._landed: asyncio.Future[T | Problem] = asyncio.get_running_loop().create_future()
        self._waiting: list[tuple[OnProgress, Present]] = []
        self.last: Progress | None = None

    @property
    def landed(self) -> bool:
        return self._landed.done()

    def wanted(self) -> bool:
        """Whether anybody who waits is still there."""
        return any(present() for _, present in self._waiting)

    def progress(self, step: Progress) -> None:
        self.last = step
        for listener, _ in tuple(self._waiting):
            listener(step)

    async def wait(self, on_progress: OnProgress, timeout_s: float, present: Present = always) -> T:
        """The result of the work. Raises its Problem, or DeadlineExceeded while the work goes on."""
        self.wanted_until = max(self.wanted_until, asyncio.get_running_loop().time() + timeout_s)
        self._waiting.append(waiter := (on_progress, present))
        if self.last is not None:
            on_progress(self.last)
        try:
            await asyncio.wait({self._landed}, timeout=max(0.0, timeout_s))
        finally:
            self._waiting.remove(waiter)
        if not self._landed.done():
            raise DeadlineExceeded(
                "the service is not ready within the time asked for; its start goes on",
                fix="Ask again: the request joins the start under way. Or wait longer: `--wait SECONDS` (`wait_s`).",
                retry_after=5,
            )
        outcome = self._landed.result()
        if isinstance(outcome, Problem):
            raise Problem.from_dict(outcome.to_dict())
        return outcome

    def land(self, outcome: T | Problem) -> None:
        if not self._landed.done():
            self._landed.set_result(outcome)


class Flights(Generic[T]):
    """`tasks` owns the work."""

    def __init__(self, tasks: OwnedTasks) -> None:
        self._tasks = tasks
        self._flights: dict[Hashable, Flight[T]] = {}

    def join(self, key: Hashable, work: Callable[[Flight[T]], Awaitable[T]]) -> tuple[Flight[T], bool]:
        """The flight for `key`, and whether this call opened it."""
        if flight := self._flights.get(key):
            return flight, False
        flight = self._flights[key] = Flight()
        self._tasks.run(self._fly(key, flight, work))
        return flight, True

    async def _fly(self, key: Hashable, flight: Flight[T], work: Callable[[Flight[T]], Awaitable[T]]) -> None:
        outcome: T | Problem = Unavailable(
            "this controller stopped", fix="Ask again: an agent that was starting goes on.", retry_after=5
        )
        try:
            outcome = await work(flight)
        except Problem as problem:
            outcome = problem
        except Exception:
            log.exception("start-failed-unforeseen")
            outcome = Problem("This node met a fault of its own.", fix="Its log has the details.")
        finally:
            self._flights.pop(key, None)
            flight.land(outcome)
