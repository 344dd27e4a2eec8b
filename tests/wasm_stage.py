"""WebAssembly services for tests, assembled from text by wasmtime itself."""

from __future__ import annotations

from collections.abc import Mapping

import wasmtime

from protocol.service import ContainerPort, ServiceDescriptor

MODULE = ServiceDescriptor(
    id="module",
    name="module",
    kind="wasm_module",
    category="/web",
    mem_requirement=16,
    entry="module.yaml",
    module="m.wasm",
    ports=(ContainerPort(8080),),
)

_IMPORTS = """
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func $write (param $to i32) (param $at i32) (param $length i32)
    (i32.store (i32.const 0) (local.get $at))
    (i32.store (i32.const 4) (local.get $length))
    (drop (call $fd_write (local.get $to) (i32.const 0) (i32.const 1) (i32.const 8))))
"""


def command(start: str, data: Mapping[int, str] | None = None) -> str:
    """A module in text whose `_start` is `start`; strings of `data` lie at their addresses (16 and up)."""
    strings = "".join(f'  (data (i32.const {at}) "{text}")\n' for at, text in (data or {}).items())
    return f'(module {_IMPORTS} {strings} (func (export "_start") {start}))'


def says(output: str) -> str:
    """A module that writes `output` (escaped as in WAT) to standard output."""
    length = len(output.encode().decode("unicode_escape"))
    return command(f"(call $write (i32.const 1) (i32.const 16) (i32.const {length}))", {16: output})


def wat(text: str) -> bytes:
    return bytes(wasmtime.wat2wasm(text))


HELLO = says("Content-Type: text/plain\\n\\nhello")
SPIN = command("(loop $forever (br $forever))")
