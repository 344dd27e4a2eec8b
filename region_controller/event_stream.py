"""Server-sent events (WHATWG HTML, section 9.2): the steps of one piece of work, and the live view of the region."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import structlog
from aiohttp import web

from protocol.events import NAMES, News
from protocol.instances import OnProgress, Progress
from protocol.problems import Problem

log = structlog.get_logger(__name__)

KEEP_ALIVE_S = 10.0
"""Between two comments on a quiet event stream, so that middleboxes keep it open."""
STALLED_S = 60.0
"""A listener that takes nothing for so long is cut off: it holds one of few places."""
MAX_QUEUED_PROGRESS = 256
_KEEP_ALIVE = b": keep-alive\n\n"
Perform = Callable[[OnProgress], Coroutine[None, None, object]]
_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-store"}


async def follow(request: web.Request, events: AsyncIterator[News]) -> web.StreamResponse:
    """Everything that is told, until nothing more is. Raises what `_in_time` does."""
    response = web.StreamResponse(headers=_HEADERS)
    await response.prepare(request)
    pending = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            await asyncio.wait({pending}, timeout=KEEP_ALIVE_S)
            if not pending.done():
                await _in_time(request, response.write(_KEEP_ALIVE))
                continue
            if (news := pending.result()) is None:
                break
            await _in_time(request, response.write(_event(NAMES[type(news)], news)))
            pending = asyncio.ensure_future(anext(events, None))
        await _in_time(request, response.write_eof())
    finally:
        pending.cancel()
    return response


async def _in_time(request: web.Request, sending: Coroutine[Any, Any, None]) -> None:
    """Raises ConnectionError if the listener has gone, or takes nothing for STALLED_S. Then its connection is cut off:
    the HTTP library would wait for it without end, to send it the end of the answer."""
    try:
        async with asyncio.timeout(STALLED_S):
            await sending
    except TimeoutError:
        log.info("listener-stalled", client=request.remote)
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionAbortedError("the listener takes nothing") from None


def wants_events(request: web.Request) -> bool:
    return "text/event-stream" in request.headers.get("Accept", "")


class _Steps:
    """Progress on its way to who asked. What cannot be told in time is not told."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Progress] = asyncio.Queue(MAX_QUEUED_PROGRESS)
        self.any = asyncio.Event()

    def tell(self, step: Progress) -> None:
        if not self.queue.full():
            self.queue.put_nowait(step)
        self.any.set()


async def stream(request: web.Request, perform: Perform) -> web.StreamResponse:
    """Server-sent events: `progress` ..., then one `result` or `problem`."""
    steps = _Steps()
    async with _under_way(perform(steps.tell)) as work:
        return await _streamed(request, steps, work)


async def answer_or_stream(
    request: web.Request, perform: Perform, answer: Callable[[object], web.StreamResponse]
) -> web.StreamResponse:
    """What is done before there is any progress to tell is answered plainly: a stream costs more. Else as `stream`.

    Raises the Problem of work that failed as quickly.
    """
    steps = _Steps()
    async with _under_way(perform(steps.tell)) as work, _under_way(steps.any.wait()) as telling:
        await asyncio.wait({work, telling}, return_when=asyncio.FIRST_COMPLETED)
        return answer(work.result()) if work.done() else await _streamed(request, steps, work)


@asynccontextmanager
async def _under_way(work: Coroutine[None, None, object]) -> AsyncIterator[asyncio.Task[object]]:
    """A task for the time of the block."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _streamed(request: web.Request, steps: _Steps, work: asyncio.Task[object]) -> web.StreamResponse:
    response = web.StreamResponse(headers=_HEADERS)
    await response.prepare(request)
    await _stream_steps(request, response, steps.queue, work)
    await _in_time(request, response.write(_last_event(work)))
    await _in_time(request, response.write_eof())
    return response


async def _stream_steps(
    request: web.Request, response: web.StreamResponse, steps: asyncio.Queue[Progress], work: asyncio.Task[object]
) -> None:
    """Until the work is done and every step of it was written."""
    while not (work.done() and steps.empty()):
        step = asyncio.ensure_future(steps.get())
        try:
            await asyncio.wait({step, work}, timeout=KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED)
            if step.done():
                await _in_time(request, response.write(_event("progress", step.result())))
            elif not work.done():
                await _in_time(request, response.write(_KEEP_ALIVE))
        finally:
            step.cancel()


def _last_event(work: asyncio.Task[object]) -> bytes:
    try:
        answer = work.result()
    except Problem as problem:
        return _event("problem", problem.to_dict())
    return _event("result", answer)


def _event(name: str, value: Any) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(value) + b"\n\n"
