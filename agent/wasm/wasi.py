"""What a guest is given of WASI for one run: arguments, variables, its three streams.

`wasmtime.WasiConfig` reads standard input from files only, and hands each write of a guest to another thread and back:
on the way of a request both cost more than the run. So the body is given to the C interface below it (`wasi.h`,
documented and stable), and `fd_write` is a function of this module, on the guest's own thread.

Calls that end at once keep Python's interpreter lock (`_quick`), which the package lets go of at each call: several
runs side by side would take it from each other dozens of times in each.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import wasmtime
from wasmtime import _bindings, _ffi, _func, _instance

WASI = "wasi_snapshot_preview1"
MAX_PIECES = 1024
"""Of one write, as of `writev` (IOV_MAX)."""

_OK, _EBADF, _EFAULT, _EFBIG, _EINVAL = 0, 8, 21, 22, 28
_STDOUT, _STDERR = 1, 2
_I32 = wasmtime.ValType.i32()
_MEMORY, _START = b"memory", b"_start"
_STRINGS = ctypes.POINTER(ctypes.POINTER(ctypes.c_char))
_BYTES = ctypes.POINTER(ctypes.c_uint8)
_FINALIZER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_U32 = struct.Struct("<I")
_PIECE = struct.Struct("<II")


_library = ctypes.PyDLL(str(_ffi.filename))


def _quick(name: str) -> Callable[..., Any]:
    """A function of the C interface that ends at once and calls nobody back: it keeps the interpreter lock."""
    function, known = getattr(_library, name), getattr(_bindings, f"_{name}")
    function.argtypes, function.restype = known.argtypes, known.restype
    return function  # type: ignore[no-any-return]


_set_argv = _quick("wasi_config_set_argv")
_set_env = _quick("wasi_config_set_env")
_set_stdin = _quick("wasi_config_set_stdin_bytes")
_new_bytes = _quick("wasm_byte_vec_new")
_export = _quick("wasmtime_instance_export_get")
_callers_export = _quick("wasmtime_caller_export_get")
_callers_context = _quick("wasmtime_caller_context")
_memory_data = _quick("wasmtime_memory_data")
_memory_size = _quick("wasmtime_memory_data_size")


class Streams:
    """What one run writes. Standard output up to `limit` bytes; then the guest's writes fail."""

    def __init__(self, limit: int, on_stderr: Callable[[bytes], None]) -> None:
        self.output = bytearray()
        self.overflown = False
        self._limit = limit
        self._on_stderr = on_stderr

    def write(self, descriptor: int, data: bytes) -> int:
        """An errno of WASI."""
        if descriptor == _STDERR:
            self._on_stderr(data)
        elif descriptor != _STDOUT:
            return _EBADF
        elif len(self.output) + len(data) > self._limit:
            self.overflown = True
            return _EFBIG
        else:
            self.output += data
        return _OK


class Writing:
    """`fd_write` of all runs of one program: a run is on the thread that it began on."""

    def __init__(self) -> None:
        self._here = threading.local()
        self._callback = _bindings.wasmtime_func_unchecked_callback_t(self._fd_write)

    @contextmanager
    def to(self, streams: Streams) -> Iterator[None]:
        """What is written on this thread during the block is written to `streams`."""
        self._here.streams = streams
        try:
            yield
        finally:
            del self._here.streams

    def define(self, linker: wasmtime.Linker) -> None:
        """In place of wasmtime's. `self` must live as long as the linker."""
        kind, name = wasmtime.FuncType([_I32] * 4, [_I32]), b"fd_write"
        error = _bindings.wasmtime_linker_define_func_unchecked(
            *(linker.ptr(), WASI.encode(), len(WASI), name, len(name)),
            *(kind.ptr(), self._callback, None, _FINALIZER()),
        )
        if error:
            raise wasmtime.WasmtimeError._from_ptr(error)

    def _fd_write(self, _data: Any, caller: Any, numbers: Any, _count: int) -> int:
        """Four 32-bit numbers are in `numbers`, the answer takes the place of the first. 0: the guest runs on."""
        descriptor, pieces, count, written = (numbers[at].i32 for at in range(4))
        memory = _memory_of(caller)
        numbers[0].i32 = (
            _EFAULT
            if memory is None
            else write(self._here.streams, memory, descriptor, _unsigned(pieces), _unsigned(count), written)
        )
        return 0


def write(streams: Streams, memory: memoryview, descriptor: int, pieces: int, count: int, written: int) -> int:
    """`fd_write`: `count` pairs of address and length at `pieces`; the number of bytes goes to `written`.

    The guest's numbers are hostile: nothing outside of its memory is touched. Returns an errno of WASI.
    """
    if count > MAX_PIECES:
        return _EINVAL
    total, written = 0, _unsigned(written)
    if written + _U32.size > len(memory) or pieces + count * _PIECE.size > len(memory):
        return _EFAULT
    for at, length in _PIECE.iter_unpack(memory[pieces : pieces + count * _PIECE.size]):
        if at + length > len(memory):
            return _EFAULT
        if error := streams.write(descriptor, bytes(memory[at : at + length])):
            return error
        total += length
    _U32.pack_into(memory, written, total & 0xFFFFFFFF)
    return _OK


def wasi_config(arguments: Sequence[str], environment: Sequence[tuple[str, str]], stdin: bytes) -> wasmtime.WasiConfig:
    """`stdin` is copied. No string may hold a zero byte. Raises WasmtimeError for what is no UTF-8."""
    wasi = wasmtime.WasiConfig()
    if not _set_argv(wasi.ptr(), len(arguments), _strings(arguments)):
        raise wasmtime.WasmtimeError("the arguments are not UTF-8")
    names, values = _strings([name for name, _ in environment]), _strings([value for _, value in environment])
    if not _set_env(wasi.ptr(), len(environment), names, values):
        raise wasmtime.WasmtimeError("the variables are not UTF-8")
    body = _bindings.wasm_byte_vec_t()
    _new_bytes(ctypes.byref(body), len(stdin), ctypes.cast(ctypes.c_char_p(stdin), _BYTES))
    _set_stdin(wasi.ptr(), ctypes.byref(body))  # which owns it from now on
    return wasi


def run(store: wasmtime.Store, instance: _instance.Instance) -> None:
    """Call the export `_start`, which takes and returns nothing. Raises Trap, ExitTrap, WasmtimeError."""
    start, context = _bindings.wasmtime_extern_t(), store._context()
    _export(context, ctypes.byref(instance._instance), _START, len(_START), ctypes.byref(start))
    with _func.enter_wasm(store) as trap:
        error = _bindings.wasmtime_func_call(context, ctypes.byref(start.of.func), None, 0, None, 0, trap)
        if error:
            raise wasmtime.WasmtimeError._from_ptr(error)


def _memory_of(caller: Any) -> memoryview | None:
    """The guest's memory as it is now: valid until it runs on. None if it exports none."""
    found = _bindings.wasmtime_extern_t()
    if not _callers_export(caller, _MEMORY, len(_MEMORY), ctypes.byref(found)):
        return None
    if int(found.kind) != _ffi.WASMTIME_EXTERN_MEMORY.value:
        return None
    context, raw = _callers_context(caller), ctypes.byref(found.of.memory)
    at = ctypes.addressof(_memory_data(context, raw).contents)
    return memoryview((ctypes.c_ubyte * _memory_size(context, raw)).from_address(at)).cast("B")


def _unsigned(number: int) -> int:
    return number & 0xFFFFFFFF


def _strings(of: Sequence[str]) -> Any:
    """A C array of C strings. ctypes keeps what it points to as long as it lives."""
    return ctypes.cast((ctypes.c_char_p * len(of))(*(text.encode() for text in of)), _STRINGS)
