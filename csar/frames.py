"""What parent and worker say to each other: frames of a 4-byte big-endian length and that many bytes of JSON."""

from __future__ import annotations

import struct
from typing import IO

from msgspec import Struct

MAX_FRAME = 8 << 20
_LENGTH = struct.Struct(">I")


class Complaint(Struct, frozen=True):
    """What tosca-parser says of the value at `path`; an empty path means the template as a whole."""

    path: tuple[str | int, ...]
    message: str


def read_frame(stream: IO[bytes]) -> bytes | None:
    """The next frame, or None at the end of input. Raises ValueError for a frame above `MAX_FRAME`."""
    header = stream.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(header)
    if length > MAX_FRAME:
        raise ValueError("frame too long")
    body = stream.read(length)
    return body if len(body) == length else None


def write_frame(stream: IO[bytes], body: bytes) -> None:
    stream.write(_LENGTH.pack(len(body)) + body)
    stream.flush()
