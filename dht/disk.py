"""Blocking disk work off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Disk:
    """Runs functions in a few threads. Use `running_disk`."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self._executor = executor

    async def __call__(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A cancelled caller waits until the thread is done: nothing goes on behind its back."""
        future = asyncio.get_running_loop().run_in_executor(self._executor, lambda: work(*args, **kwargs))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait({future})
            if not future.cancelled():
                future.exception()
            raise


@asynccontextmanager
async def running_disk(threads: int) -> AsyncIterator[Disk]:
    executor = ThreadPoolExecutor(threads, thread_name_prefix="content-disk")
    try:
        yield Disk(executor)
    finally:
        await asyncio.to_thread(executor.shutdown)
