"""Waiting for conditions, so that no test sleeps for a guess."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

T = TypeVar("T")


@overload
async def until(condition: Callable[[], Awaitable[T]], *, timeout_s: float = 10.0, every_s: float = 0.02) -> T: ...


@overload
async def until(condition: Callable[[], T], *, timeout_s: float = 10.0, every_s: float = 0.02) -> T: ...


async def until(
    condition: Callable[[], T] | Callable[[], Awaitable[T]], *, timeout_s: float = 10.0, every_s: float = 0.02
) -> T:
    """The first true value of `condition` (plain or async). Raises TimeoutError with its last value."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        came = condition()
        value: T = await came if inspect.isawaitable(came) else came
        if value:
            return value
        if loop.time() > deadline:
            raise TimeoutError(f"condition still {value!r} after {timeout_s} s")
        await asyncio.sleep(every_s)
