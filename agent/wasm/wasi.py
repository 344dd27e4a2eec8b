"""What a guest is given of WASI for one run: arguments, variables, its three streams.

`wasmtime.WasiConfig` reads standard input from files only, and hands each write of a guest to another thread and back:
on the way of a request both cost more than the run. So the body is given to the C interface below it (`wasi.h`,
documented and stable), and `fd_write` is a function of this module, on the guest's own thread.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import wasmtime
from wasmtime import _bindings, _func, _instance

WASI = "wasi_snapshot_preview1"
MAX_PIECES = 1024
"""Of one write, as of `writev` (IOV_MAX)."""

_OK, _EBADF, _EFAULT, _EFBIG, _EINVAL = 0, 8, 21, 22, 28
_STDOUT, _STDERR = 1, 2
_I32 = wasmtime.ValType.i32()
_STRINGS = ctypes.POINTER(ctypes.POINTER(ctypes.c_char))
_BYTES = ctypes.POINTER(ctypes.c_uint8)
_U32 = struct.Struct("<I")
_PIECE = struct.Struct("<II")


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

    @contextmanager
    def to(self, streams: Streams) -> Iterator[None]:
        """What is written on this thread during the block is written to `streams`."""
        self._here.streams = streams
        try:
            yield
        finally:
            del self._here.streams

    def define(self, linker: wasmtime.Linker) -> None:
        """In place of wasmtime's."""
        linker.define_func(WASI, "fd_write", wasmtime.FuncType([_I32] * 4, [_I32]), self._fd_write, access_caller=True)

    def _fd_write(self, caller: _func.Caller, descriptor: int, pieces: int, count: int, written: int) -> int:
        memory = caller.get("memory")
        if not isinstance(memory, wasmtime.Memory):
            return _EFAULT
        return write(
            self._here.streams, _view(caller, memory), descriptor, _unsigned(pieces), _unsigned(count), written
        )


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
    if not _bindings.wasi_config_set_argv(wasi.ptr(), len(arguments), _strings(arguments)):
        raise wasmtime.WasmtimeError("the arguments are not UTF-8")
    names, values = _strings([name for name, _ in environment]), _strings([value for _, value in environment])
    if not _bindings.wasi_config_set_env(wasi.ptr(), len(environment), names, values):
        raise wasmtime.WasmtimeError("the variables are not UTF-8")
    body = _bindings.wasm_byte_vec_t()
    _bindings.wasm_byte_vec_new(ctypes.byref(body), len(stdin), ctypes.cast(ctypes.c_char_p(stdin), _BYTES))
    _bindings.wasi_config_set_stdin_bytes(wasi.ptr(), ctypes.byref(body))  # which owns it from now on
    return wasi


def start_of(store: wasmtime.Store, instance: _instance.Instance) -> wasmtime.Func:
    """The export `_start`, which is there, without a look at all the others."""
    found = _bindings.wasmtime_extern_t()
    name = b"_start"
    _bindings.wasmtime_instance_export_get(
        store._context(), ctypes.byref(instance._instance), name, len(name), ctypes.byref(found)
    )
    return wasmtime.Func._from_raw(found.of.func)


def _view(caller: _func.Caller, memory: wasmtime.Memory) -> memoryview:
    """The guest's memory as it is now: valid until it runs on."""
    context, raw = caller._context(), ctypes.byref(memory._memory)
    size = _bindings.wasmtime_memory_data_size(context, raw)
    base = cast(Any, _bindings.wasmtime_memory_data(context, raw))
    return memoryview((ctypes.c_ubyte * size).from_address(ctypes.addressof(base.contents))).cast("B")


def _unsigned(number: int) -> int:
    return number & 0xFFFFFFFF


def _strings(of: Sequence[str]) -> Any:
    """A C array of C strings. ctypes keeps what it points to as long as it lives."""
    return ctypes.cast((ctypes.c_char_p * len(of))(*(text.encode() for text in of)), _STRINGS)
