"""A program that does nothing until it is killed, as a static ELF file of less than 200 bytes.

It is what a network sandbox runs (`agent.docker.sandboxes`). Made here, it needs no registry, no compiler and no
package: one ELF header, one program header that maps the file read-only and executable at `BASE`, and an endless loop
around the system call that waits for a signal. Layout: ELF-64 specification (System V gABI), figures 4-3 and 5-1.
"""

from __future__ import annotations

import io
import struct
import tarfile

BASE = 0x400000
PATH = "/pause"

_ELF_HEADER = 64
_PROGRAM_HEADER = 56
_EXECUTABLE = 2
_LOAD = 1
_READ_AND_EXECUTE = 5
_PAGE = 0x10000
"""Alignment that suits kernels with pages of 4, 16 and 64 KiB."""

_MACHINES: dict[str, tuple[int, bytes]] = {
    # again: mov eax, 34 (pause); syscall; jmp again
    "amd64": (62, bytes.fromhex("b822000000 0f05 ebf7")),
    # again: mov x0..x4, #0; mov x8, #73 (ppoll of nothing, for ever); svc #0; b again
    "arm64": (
        183,
        struct.pack("<8I", *(0xD2800000 | r for r in range(5)), 0xD2800928, 0xD4000001, 0x17FFFFF9),
    ),
}
"""By the engine's word for the processor: e_machine and the code."""


def pause_program(architecture: str) -> bytes | None:
    """The executable for an engine's `Arch`; None for one that is not known here."""
    if architecture not in _MACHINES:
        return None
    machine, code = _MACHINES[architecture]
    start = _ELF_HEADER + _PROGRAM_HEADER
    size = start + len(code)
    identification = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)  # 64 bits, little-endian, version 1
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        identification,
        _EXECUTABLE,
        machine,
        1,  # version
        BASE + start,  # entry
        _ELF_HEADER,  # the program header follows at once
        0,  # no sections
        0,
        _ELF_HEADER,
        _PROGRAM_HEADER,
        1,  # program headers
        0,
        0,
        0,
    )
    segment = struct.pack("<IIQQQQQQ", _LOAD, _READ_AND_EXECUTE, 0, BASE, BASE, size, size, _PAGE)
    return header + segment + code


def pause_layer(architecture: str) -> bytes | None:
    """A tar with the program alone: an image's only layer. The same bytes each time."""
    program = pause_program(architecture)
    if program is None:
        return None
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        member = tarfile.TarInfo(PATH.removeprefix("/"))
        member.size, member.mode = len(program), 0o555
        archive.addfile(member, io.BytesIO(program))
    return layer.getvalue()
