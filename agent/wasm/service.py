"""One instance: a small HTTP server on loopback that gives every request to a fresh run of the module.

Memory: the instance has what its description asks for. Up to `MAX_AT_ONCE` requests run side by side and share it in
equal parts, fewer where the module begins with more memory than such a part. What waits is bounded, too.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager

import msgspec
import structlog
from aiohttp import hdrs, web

from agent.runtime import MAX_LOG_LINE
from agent.wasm.engine import TICK_S, Limits, Program, Request
from agent.wasm.wagi import Answer, Head, arguments, environment, parse_answer
from protocol.problems import BadRequest, Problem, StartFailed, TooLarge, TooManyRequests

log = structlog.get_logger(__name__)

MAX_AT_ONCE = 4
MAX_WAITING = 256
MAX_BODY = 64 << 20
MAX_BODIES = 2 * MAX_BODY
"""Bytes of all request bodies that an instance holds at one moment."""

BODY_S = 60.0
"""For a body to arrive."""

GRACE_S = 0.05
LOG_KEPT = 200

HttpRequest = web.BaseRequest


class WasmService:
    def __init__(self, program: Program, limits: Limits, at_once: int, variables: Mapping[str, str]) -> None:
        self._program = program
        self._limits = limits
        self._variables = variables
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="wasm")
        self._awake = asyncio.Event()
        self._waiting = 0
        self._bodies = 0
        self._ticker = _Ticker(program)
        self._log = _Log()
        self._http = web.Server(self._serve, access_log=None)
        self._listener: asyncio.Server | None = None

    @property
    def log(self) -> tuple[str, ...]:
        return tuple(self._log.lines)

    async def open(self, listener: socket.socket) -> None:
        """Serve those who connect there. The socket is the service's from now on."""
        self._listener = await asyncio.get_running_loop().create_server(self._http, sock=listener)

    def pause(self) -> None:
        """Requests wait from now on; those that run already end."""
        self._awake.clear()

    def resume(self) -> None:
        self._awake.set()

    async def close(self) -> Program:
        """Stop listening, interrupt what runs, reset what waits. The program is the caller's again."""
        if self._listener is not None:
            self._listener.close()
        await asyncio.to_thread(self._program.interrupt)
        await self._http.shutdown(GRACE_S)
        await asyncio.to_thread(self._pool.shutdown)
        self._ticker.stop()
        self._program.rest()
        return self._program

    # --- a request --------------------------------------------------------------------------------------------------

    async def _serve(self, request: HttpRequest) -> web.StreamResponse:
        try:
            with self._queued():
                answer = await self._answer(request)
        except Problem as problem:
            self._log.add(f"{request.method} {request.path[:100]}: {problem.detail}")
            return _problem_response(problem)
        return _response(answer)

    async def _answer(self, request: HttpRequest) -> Answer:
        async with self._body(request) as stdin:
            await self._awake.wait()
            head = _head(request)
            variables = environment(head, len(stdin), self._variables)
            with self._ticker.running(), self._log.stream() as heard:
                run = Request(variables, arguments("module.wasm", head.query), stdin, heard)
                loop = asyncio.get_running_loop()
                output = await loop.run_in_executor(self._pool, self._program.run, run, self._limits)
        return parse_answer(output)

    @contextmanager
    def _queued(self) -> Iterator[None]:
        if self._waiting >= MAX_WAITING:
            raise TooManyRequests(f"{MAX_WAITING} requests wait already", fix="Ask again in a moment.", retry_after=1)
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    @asynccontextmanager
    async def _body(self, request: HttpRequest) -> AsyncIterator[bytes]:
        """The request's body, whole: a guest cannot be interrupted while it waits for more."""
        if not request.body_exists:
            yield b""
            return
        if (request.content_length or 0) > MAX_BODY:
            raise _body_too_large()
        if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        pieces: list[bytes] = []
        length = 0
        try:
            async with asyncio.timeout(BODY_S):
                while piece := await request.content.readany():
                    self._bodies += len(piece)
                    length += len(piece)
                    if length > MAX_BODY:
                        raise _body_too_large()
                    if self._bodies > MAX_BODIES:
                        raise TooManyRequests("too many large requests at once", fix="Ask again.", retry_after=1)
                    pieces.append(piece)
            yield b"".join(pieces)
        except TimeoutError:
            raise BadRequest(f"the body did not arrive within {BODY_S:g} s", fix="Send it faster.") from None
        finally:
            self._bodies -= length


class _Ticker:
    """Moves the program's epoch on while anything runs, by the clock: a late call makes good for missed ticks."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._running = 0
        self._ticked_at = 0.0
        self._next: asyncio.TimerHandle | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        self._running += 1
        if self._next is None:
            self._ticked_at = loop.time()
            self._next = loop.call_later(TICK_S, self._tick)
        try:
            yield
        finally:
            self._running -= 1

    def stop(self) -> None:
        if self._next is not None:
            self._next.cancel()

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        passed = math.floor((loop.time() - self._ticked_at) / TICK_S)
        self._program.tick(passed)
        self._ticked_at += passed * TICK_S
        self._next = loop.call_later(TICK_S, self._tick) if self._running else None


class _Log:
    """The last lines written to standard error, and what became of requests that failed."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=LOG_KEPT)

    def add(self, line: str) -> None:
        if line.strip():
            self.lines.append(line.rstrip()[:MAX_LOG_LINE])

    @contextmanager
    def stream(self) -> Iterator[Callable[[bytes], None]]:
        """Takes what one request writes, in pieces, and keeps whole lines: those of others do not come between."""
        rest = bytearray()

        def heard(piece: bytes) -> None:
            rest.extend(piece)
            *lines, last = rest.split(b"\n")
            for line in lines[-LOG_KEPT:]:
                self.add(line[:MAX_LOG_LINE].decode("utf-8", "replace"))
            rest[:] = last[:MAX_LOG_LINE]

        try:
            yield heard
        finally:
            heard(b"\n")


async def open_service(
    program: Program,
    listener: socket.socket,
    *,
    mem_mb: int,
    fuel: int | None,
    timeout_s: float,
    variables: Mapping[str, str],
) -> WasmService:
    """An instance that serves `listener` and is awake.

    Raises StartFailed if the module begins with more memory than it has.
    """
    memory = mem_mb * 10**6
    if program.initial_memory > memory:
        program.close()
        raise StartFailed(
            f"the module begins with {program.initial_memory} bytes of memory, mem_requirement allows {memory}",
            fix="Describe a larger mem_requirement.",
            reason="out-of-memory",
            log=[],
        )
    at_once = max(1, min(MAX_AT_ONCE, memory // max(program.initial_memory, 1)))
    limits = Limits(memory=memory // at_once, fuel=fuel, timeout_s=timeout_s)
    service = WasmService(program, limits, at_once, variables)
    await service.open(listener)
    service.resume()
    return service


def _head(request: HttpRequest) -> Head:
    path, _, query = request.raw_path.partition("?")
    host, _, port = request.host.rpartition(":")
    return Head(
        method=request.method,
        path=path,
        query=query,
        headers=tuple(request.headers.items()),
        host=host if host and port.isdigit() else request.host,
        port=int(port) if host and port.isdigit() else 80,
        remote=request.remote or "",
        protocol=f"HTTP/{request.version.major}.{request.version.minor}",
    )


def _response(answer: Answer) -> web.Response:
    response = web.Response(status=answer.status, body=answer.body)
    response.headers.popall(hdrs.CONTENT_TYPE, None)
    for name, value in answer.headers:
        response.headers.add(name, value)
    response.headers.setdefault(hdrs.SERVER, "Cornerstore")
    return response


def _problem_response(problem: Problem) -> web.Response:
    body = msgspec.json.encode(problem.to_dict())
    response = web.Response(status=problem.status, body=body, content_type="application/problem+json")
    if problem.retry_after is not None:
        response.headers[hdrs.RETRY_AFTER] = str(math.ceil(problem.retry_after))
    return response


def _body_too_large() -> TooLarge:
    return TooLarge(f"the body has more than {MAX_BODY} bytes", fix="Send it in parts.")
