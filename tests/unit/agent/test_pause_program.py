"""The program of network sandboxes: a real executable that waits, where this machine can run it."""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest

from agent.docker.pause_program import BASE, pause_layer, pause_program
from tests.waiting import until

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_it_is_one_read_only_segment_whose_entry_lies_inside(architecture: str) -> None:
    program = pause_program(architecture)
    assert program is not None
    assert len(program) < 200
    entry = struct.unpack_from("<Q", program, 24)[0]
    kind, flags, offset, address, _, in_file, in_memory, _ = struct.unpack_from("<IIQQQQQQ", program, 64)
    assert (kind, flags & 2) == (1, 0), "loaded, and not writable"
    assert (offset, address, in_file, in_memory) == (0, BASE, len(program), len(program))
    assert BASE + 120 == entry < BASE + len(program)


async def test_it_waits_until_it_is_ended(tmp_path: Path) -> None:
    program = pause_program(ARCHITECTURES[os.uname().machine])
    assert program is not None
    executable = tmp_path / "pause"
    executable.write_bytes(program)
    executable.chmod(0o755)
    with subprocess.Popen([executable]) as process:
        await until(lambda: "(pause)" in Path(f"/proc/{process.pid}/stat").read_text())
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        process.terminate()
        assert process.wait(5) == -signal.SIGTERM, "it did not end by itself before"
    assert state in {"R", "S"}


def test_a_layer_holds_the_program_alone_and_is_always_the_same() -> None:
    layer = pause_layer("amd64")
    assert layer is not None
    assert layer == pause_layer("amd64")
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        assert [(m.name, m.mode, m.size) for m in archive] == [("pause", 0o555, len(pause_program("amd64") or b""))]


def test_an_unknown_processor_has_none() -> None:
    assert pause_program("riscv64") is None
    assert pause_layer("riscv64") is None
