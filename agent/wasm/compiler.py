"""Compiles one module to native code: `python wasm_compiler.py SOURCE TARGET MEMORY_BYTES CPU_S`.

It runs as a process of its own, so that a hostile module costs bounded memory and time, can be given up, and takes
nobody with it. As a script it imports nothing of the agent. On failure stderr says why; `NO_ROOM` is the status when
the disk is to blame.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import wasmtime

NO_ROOM = 3
MAX_COMPILED = 512 << 20


def engine() -> wasmtime.Engine:
    """An engine of the one configuration that compiled modules fit to."""
    config = wasmtime.Config()
    config.epoch_interruption = True
    config.consume_fuel = True
    config.wasm_threads = False
    return wasmtime.Engine(config)


def main() -> None:
    source, target, memory, cpu_s = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_COMPILED, MAX_COMPILED))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        compiled = wasmtime.Module(engine(), source.read_bytes()).serialize()
    except wasmtime.WasmtimeError as error:
        sys.exit(str(error))
    try:
        target.write_bytes(compiled)
    except OSError:
        sys.exit(NO_ROOM)


if __name__ == "__main__":
    main()
