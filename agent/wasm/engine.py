"""One compiled module, ready to run: each request gets a fresh instance with limits of its own.

With `wasm_compiler` and `wasi` this is the only module that knows wasmtime. What a guest can reach: its own memory, its
arguments and variables, the bytes on its standard input, two streams that are read here, clocks and random bytes. It
has no file, no socket and no way to wait: `poll_oneoff`, the one WASI call that blocks (epochs do not interrupt
host calls), answers ENOSYS.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence

import wasmtime
from msgspec import Struct

from agent.wasm.compiler import engine
from agent.wasm.wasi import WASI, Streams, Writing, run, wasi_config
from protocol.problems import DeadlineExceeded, ServiceError, StartFailed, TooLarge

TICK_S = 0.05
"""Time of one epoch: deadlines are kept to that."""

MAX_ANSWER = 16 << 20
MAX_TABLE_ELEMENTS = 100_000
UNLIMITED_FUEL = 2**63
PAGE = 1 << 16

_ENOSYS = 52
_I32 = wasmtime.ValType.i32()


class Limits(Struct, frozen=True, kw_only=True):
    """Of one request: bytes of memory, instructions (None: only the time counts), seconds."""

    memory: int
    fuel: int | None
    timeout_s: float


class Request(Struct, frozen=True):
    """`stdin` is the body. `on_stderr` is called from another thread."""

    environment: Sequence[tuple[str, str]]
    arguments: Sequence[str]
    stdin: bytes
    on_stderr: Callable[[bytes], None]


class Program:
    """A module in an engine of its own, so that it is interrupted alone. Safe for several threads at once."""

    def __init__(self, compiled: bytes) -> None:
        """Load what `wasm_compiler` wrote, and only that: it becomes native code. Raises StartFailed.

        From memory, not from a mapped file: who cut that short would end the node with a bus error.
        """
        self.size = len(compiled)
        self._engine = engine()
        self._lock = threading.Lock()
        self._longest = 0
        self._ended = False
        try:
            self._module = wasmtime.Module.deserialize(self._engine, compiled)
            self._writing = Writing()
            self._linker = _linker(self._engine, self._writing)
            self._ready = self._linker.instantiate_pre(self._module)
        except wasmtime.WasmtimeError as error:
            raise StartFailed(
                f"the module does not fit this node: {_first_line(error)}",
                fix="A module may import wasi_snapshot_preview1 only; it must be a command (export _start).",
                reason="engine-refused",
                log=[],
            ) from error
        exports = {export.name: export.type for export in self._module.exports}
        if not isinstance(exports.get("_start"), wasmtime.FuncType):
            raise StartFailed(
                "the module does not export _start",
                fix="Build a WASI command, not a reactor or a library.",
                reason="engine-refused",
                log=[],
            )
        memories = [kind for kind in exports.values() if isinstance(kind, wasmtime.MemoryType)]
        self.initial_memory: int = sum(kind.limits.min for kind in memories) * PAGE

    def close(self) -> None:
        """Give memory and descriptors back at once; nothing may run any more."""
        for part in (self._ready, self._module, self._linker, self._engine):
            part.close()

    def tick(self, count: int = 1) -> None:
        """`count` times `TICK_S` have passed."""
        for _ in range(count):
            self._engine.increment_epoch()

    def rest(self) -> None:
        """Nothing runs any more, and the next instance may be another one: what was interrupted may run again."""
        self._ended = False

    def interrupt(self) -> None:
        """End whatever runs, and whatever begins, until `rest`."""
        self._ended = True
        self.tick(self._longest)

    def run(self, request: Request, limits: Limits) -> bytes:
        """What the module wrote to standard output. Blocks its thread.

        Raises DeadlineExceeded (time or fuel is used up), TooLarge (its answer is), ServiceError for any other end.
        """
        streams = Streams(MAX_ANSWER, request.on_stderr)
        ticks = math.ceil(limits.timeout_s / TICK_S) + 1
        with wasmtime.Store(self._engine) as store:
            store.set_limits(limits.memory, MAX_TABLE_ELEMENTS, instances=1, tables=8, memories=1)
            store.set_fuel(UNLIMITED_FUEL if limits.fuel is None else limits.fuel)
            store.set_wasi(wasi_config(request.arguments, request.environment, request.stdin))
            with self._lock:
                self._longest = max(self._longest, ticks)
                store.set_epoch_deadline(ticks)
            if self._ended:
                raise _interrupted()
            try:
                with self._writing.to(streams):
                    run(store, self._ready.instantiate(store))
            except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
                if not (isinstance(error, wasmtime.ExitTrap) and error.code == 0):
                    raise self._problem(error, limits, streams) from error
        if streams.overflown:
            raise _too_large()
        return bytes(streams.output)

    def _problem(self, error: Exception, limits: Limits, streams: Streams) -> Exception:
        code = error.trap_code if isinstance(error, wasmtime.Trap) else None
        if self._ended:
            return _interrupted()
        if streams.overflown:
            return _too_large()
        if code is wasmtime.TrapCode.INTERRUPT:
            return DeadlineExceeded(
                f"the request took longer than the {limits.timeout_s:g} s that the service is allowed",
                fix="Send less at once, or describe a longer `timeout`.",
            )
        if code is wasmtime.TrapCode.OUT_OF_FUEL:
            return DeadlineExceeded(
                f"the request used up the {limits.fuel} instructions that the service is allowed",
                fix="Send less at once, or describe more `fuel`.",
            )
        if isinstance(error, wasmtime.ExitTrap):
            return ServiceError(f"the module ended with status {error.code}", fix="Read the service's log.")
        said = code.name.lower().replace("_", " ") if code is not None else _first_line(error)
        return ServiceError(f"the module was ended: {said}", fix="Read the service's log.")


def _linker(of: wasmtime.Engine, writing: Writing) -> wasmtime.Linker:
    linker = wasmtime.Linker(of)
    linker.define_wasi()
    linker.allow_shadowing = True
    writing.define(linker)
    linker.define_func(WASI, "poll_oneoff", wasmtime.FuncType([_I32] * 4, [_I32]), lambda *_: _ENOSYS)
    return linker


def _interrupted() -> ServiceError:
    return ServiceError("the instance was stopped while it answered", fix="Start it again and repeat the request.")


def _too_large() -> TooLarge:
    return TooLarge(f"the service answered with more than {MAX_ANSWER} bytes", fix="Ask it for less at once.")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
