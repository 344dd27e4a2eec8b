"""Background tasks with an owner: none outlives it, and none fails unseen."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar

import structlog

from protocol.problems import Problem

log = structlog.get_logger(__name__)
T = TypeVar("T")


class OwnedTasks:
    """An async context that cancels and awaits its tasks at the end.

    Not a TaskGroup: the overlay outlives a failed question, and its owner's own exceptions must come out unwrapped.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self.crashes = 0

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.crashes += 1
            log.error("dht-task-crashed", exc_info=error)

    async def __aenter__(self) -> OwnedTasks:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def periodically(interval_s: float, step: Callable[[], Awaitable[None]]) -> None:
    """`step` at once and then again `interval_s` after it ended, until cancelled. A Problem ends a step, not the row:
    a disk that is full now may have room the next time."""
    while True:
        try:
            await step()
        except Problem as problem:
            log.error("dht-step-failed", step=step.__qualname__, detail=problem.detail)
        await asyncio.sleep(interval_s)
