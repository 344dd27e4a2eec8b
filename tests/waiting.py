"""Waiting for conditions, so that no test sleeps for a guess."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def until(condition: Callable[[], T | Awaitable[T]], *, timeout_s: float = 10.0, every_s: float = 0.02) -> T:
    """The first true value of `condition` (plain or async). Raises TimeoutError with its last value."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if loop.time() > deadline:
            raise TimeoutError(f"condition still {value!r} after {timeout_s} s")
        await asyncio.sleep(every_s)
