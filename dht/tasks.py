"""Background tasks with an owner: none outlives it, and none fails unseen.

The failure of a piece of work concerns only who awaits it (`OwnedTasks`); a loop that crashes ends its owner
(`running_loops`). Both are cancelled and awaited at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import structlog

from protocol.problems import Problem

log = structlog.get_logger(__name__)
T = TypeVar("T")


class OwnedTasks:
    """An async context that cancels and awaits its tasks at the end, those that its tasks began meanwhile too.

    Not a TaskGroup: the owner outlives a failed task, and its own exceptions must come out unwrapped.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self.crashes = 0
        """Tasks that ended with anything but a Problem."""

    def __len__(self) -> int:
        return len(self._tasks)

    def run(self, work: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
        """Whoever wants the result awaits `asyncio.shield(task)`; a failure that nobody awaits is logged."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, Problem):
            log.debug("task-refused", task=task.get_name(), problem=error.slug, detail=error.detail)
        else:
            self.crashes += 1
            log.error("task-crashed", task=task.get_name(), exc_info=error)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.cancel()

    async def cancel(self) -> None:
        """End every task, and those that they begin meanwhile; the context goes on."""
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def running_loops(loops: Mapping[str, Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """The loops, by name, run during the block. One that crashes cancels the block and raises an ExceptionGroup.

    What the block itself raises leaves it unwrapped.
    """
    raised: BaseException | None = None
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work, name=name) for name, work in loops.items()]
        try:
            yield
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - raised again outside of the group, which would wrap it
            raised = error
        finally:
            for task in tasks:
                task.cancel()
    if raised is not None:
        raise raised


async def periodically(interval_s: float, step: Callable[[], Awaitable[None]]) -> None:
    """`step` at once and then again `interval_s` after it ended, until cancelled. A Problem ends a step, not the row:
    a disk that is full now may have room the next time. It is logged when it begins, changes, and ends."""
    trouble = ""
    while True:
        try:
            await step()
        except Problem as problem:
            if problem.detail != trouble:
                log.error("step-failed", step=step.__qualname__, detail=problem.detail)
            trouble = problem.detail
        else:
            if trouble:
                log.info("step-works-again", step=step.__qualname__)
            trouble = ""
        await asyncio.sleep(interval_s)
