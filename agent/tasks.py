"""Tasks whose failure concerns only who awaits them: owned, cancelled and awaited at the end.

A TaskGroup would end the whole agent when one start fails; that is right for its loops, wrong for its commands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
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
