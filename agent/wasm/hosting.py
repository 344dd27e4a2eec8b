"""The node's end of its WebAssembly host (`agent.wasm.host`): start it when it is first needed, and notice its end.

A host that dies (a fault in the WebAssembly runtime, no memory left) takes no listener with it: those are the node's.
Clients that connect meanwhile wait in the kernel until the next host accepts them.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

import msgspec
import structlog

from agent.wasm.commands import (
    Answer,
    Check,
    Close,
    Command,
    Failed,
    Open,
    Pause,
    ReadLog,
    Resume,
    framed,
    read_frame,
)
from dht.tasks import OwnedTasks
from protocol.problems import EngineUnavailable, Problem

log = structlog.get_logger(__name__)

ANSWER_S = 30.0
STOP_S = 2.0
MAX_DEATHS = 3
PERIOD_S = 60.0
"""A host that died so often within this time is not started again before it is over."""
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class WasmHost:
    """Use `running_host`. Calls raise the host's own Problem, or EngineUnavailable if it ends before it answers."""

    def __init__(self, process: asyncio.subprocess.Process, handing: socket.socket) -> None:
        self._process = process
        self._handing = handing
        self._numbers = iter(range(1 << 62))
        self._pending: dict[int, asyncio.Future[Answer]] = {}

    @property
    def pid(self) -> int:
        return self._process.pid

    async def check(self, native: bytes, sha256: str) -> None:
        """Does native code of this digest fit? Raises StartFailed."""
        await self._ask(Check(next(self._numbers), sha256), (), native)

    async def open(
        self,
        instance: str,
        listener: socket.socket,
        native: bytes,
        *,
        sha256: str,
        mem_mb: int,
        fuel: int | None,
        timeout_s: float,
        variables: Mapping[str, str],
    ) -> None:
        """Serve an instance at a listener of the node's. Raises StartFailed."""
        command = Open(
            number=next(self._numbers),
            instance=instance,
            sha256=sha256,
            mem=mem_mb,
            fuel=fuel,
            timeout_s=timeout_s,
            variables=variables,
        )
        await self._ask(command, (listener.fileno(),), native)

    async def pause(self, instance: str) -> None:
        await self._ask(Pause(next(self._numbers), instance))

    async def resume(self, instance: str) -> None:
        await self._ask(Resume(next(self._numbers), instance))

    async def close(self, instance: str) -> None:
        await self._ask(Close(next(self._numbers), instance))

    async def log(self, instance: str, lines: int) -> tuple[str, ...]:
        return await self._ask(ReadLog(next(self._numbers), instance, lines))

    async def _ask(
        self, command: Command, descriptors: Sequence[int] = (), native: bytes | None = None
    ) -> tuple[str, ...]:
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._pending[command.number] = answered
        try:
            with _in_memory(native) as code:
                self._send(command, [*descriptors, *code])
            async with asyncio.timeout(ANSWER_S):
                answer = await answered
        except TimeoutError:
            raise EngineUnavailable(f"the WebAssembly host did not answer within {ANSWER_S:g} s") from None
        finally:
            del self._pending[command.number]
        if isinstance(answer, Failed):
            raise Problem.from_dict(answer.problem)
        return answer.lines

    def _send(self, command: Command, descriptors: Sequence[int]) -> None:
        """No await in between: descriptors and commands keep one order."""
        assert self._process.stdin is not None
        try:
            if descriptors:
                socket.send_fds(self._handing, [b"\0"], list(descriptors))
            self._process.stdin.write(framed(command))
        except OSError as error:
            raise _gone() from error

    async def listen(self) -> int:
        """Hear answers until the host ends; its exit status. To be run by the host's owner."""
        assert self._process.stdout is not None
        decoder = msgspec.msgpack.Decoder(Answer)
        try:
            while (answer := await read_frame(self._process.stdout, decoder)) is not None:
                self._settle(answer.number, answer)
        except (ValueError, msgspec.MsgspecError) as error:
            log.error("wasm-host-babbles", error=str(error))
            self._process.kill()
        status = await self._process.wait()
        for number in list(self._pending):
            self._settle(number, Failed(number, _gone().to_dict()))
        return status

    def _settle(self, number: int, answer: Answer) -> None:
        waiting = self._pending.get(number)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)


@asynccontextmanager
async def running_host() -> AsyncIterator[WasmHost]:
    """A host process for the time of the block."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setblocking(False)
    with ours:
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "agent.wasm.host", str(theirs.fileno())),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C at a terminal is for the node
            )
        try:
            yield WasmHost(process, ours)
        finally:
            await _end(process)


class Hosting:
    """A host as soon as one is needed, and another one when it died, but not for ever.

    `on_death` is called once the host is gone; it may ask for the next one. Use as an async context.
    """

    def __init__(self, on_death: Callable[[], Awaitable[None]], clock: Callable[[], float] = time.monotonic) -> None:
        self._on_death = on_death
        self._clock = clock
        self._tasks = OwnedTasks()
        self._up: asyncio.Future[WasmHost] | None = None
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.cancel()

    @property
    def running(self) -> WasmHost | None:
        """The host, if there is one now."""
        up = self._up
        return up.result() if up is not None and up.done() and up.exception() is None else None

    def begin(self) -> None:
        """A host will be needed soon: it starts beside whatever must be done first. `host` tells if it cannot."""
        if self._up is None and not dies_too_often(self._deaths, self._clock()):
            self._start()

    async def host(self) -> WasmHost:
        """Raises EngineUnavailable if it cannot be started, or dies again and again."""
        if self._up is None and dies_too_often(self._deaths, self._clock()):
            raise EngineUnavailable(
                f"the WebAssembly host died {MAX_DEATHS} times within {PERIOD_S:g} s",
                fix="Read the node's log; remove the service that it began with. It is tried again in a minute.",
            )
        return await asyncio.shield(self._up or self._start())

    def _start(self) -> asyncio.Future[WasmHost]:
        up = self._up = asyncio.get_running_loop().create_future()
        up.add_done_callback(lambda done: done.cancelled() or done.exception())  # perhaps nobody waits for it
        self._tasks.run(self._live(up), name="wasm host")
        return up

    async def _live(self, up: asyncio.Future[WasmHost]) -> None:
        """One host from its start to its end."""
        try:
            async with running_host() as host:
                up.set_result(host)
                status = await host.listen()
        except OSError as error:
            self._up = None
            up.set_exception(EngineUnavailable(f"the WebAssembly host cannot be started: {error.strerror}"))
            return
        self._up = None
        self._deaths.append(self._clock())
        log.error("wasm-host-died", status=status)
        await self._on_death()


def dies_too_often(deaths: Sequence[float], now: float) -> bool:
    return len(deaths) >= MAX_DEATHS and now - deaths[0] < PERIOD_S


async def _end(process: asyncio.subprocess.Process) -> None:
    """It ends with its stdin; whatever does not is killed."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@contextlib.contextmanager
def _in_memory(native: bytes | None) -> Iterator[Sequence[int]]:
    """Native code as a sealed file in memory: nobody can cut it short under the host."""
    if native is None:
        yield ()
        return
    descriptor = os.memfd_create("wasm-native", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(native)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        yield (descriptor,)
    finally:
        os.close(descriptor)


def _gone() -> EngineUnavailable:
    return EngineUnavailable("the WebAssembly host ended", fix="It is started again; repeat the request.")
