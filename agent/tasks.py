"""Who owns the agent's tasks.

A command's failure concerns only who awaits it (`OwnedTasks`); a loop that crashes ends the agent (`running_loops`).
Both are cancelled and awaited at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, TypeVar

import structlog

from protocol.problems import Problem

log = structlog.get_logger(__name__)

T = TypeVar("T")


class OwnedTasks:
    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> OwnedTasks:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def run(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Whoever wants the result awaits `asyncio.shield(task)`; a failure that nobody awaits is logged."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, Problem):
            log.debug("task-refused", task=task.get_name(), problem=error.slug, detail=error.detail)
        elif error is not None:
            log.error("task-failed", task=task.get_name(), exc_info=error)


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
