"""What the node and its WebAssembly host say to each other: length-prefixed msgpack on the host's stdin and stdout.

    frame: length (4 bytes, big-endian), msgpack map tagged by `type`, at most MAX_FRAME bytes

Descriptors (a listener, a file in memory with native code) come over a socket of their own. They are sent before the
command that means them, one byte with each group, so that groups and commands are in the same order.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

MAX_FRAME = 1 << 20
_LENGTH = struct.Struct(">I")


class Check(Struct, frozen=True, tag=True):
    """Does the native code (one descriptor) fit this host? Nothing of it is run; it is kept for an `Open`."""

    number: int
    sha256: str


class Open(Struct, frozen=True, tag=True, kw_only=True):
    """Serve an instance: a listener and native code come along. `mem` in MB, `timeout_s` of one request.

    Code of this digest that is loaded and unused is taken instead of the one that came.
    """

    number: int
    instance: str
    sha256: str
    mem: int
    fuel: int | None
    timeout_s: float
    variables: Mapping[str, str]


class Pause(Struct, frozen=True, tag=True):
    number: int
    instance: str


class Resume(Struct, frozen=True, tag=True):
    number: int
    instance: str


class Close(Struct, frozen=True, tag=True):
    number: int
    instance: str


class ReadLog(Struct, frozen=True, tag=True):
    number: int
    instance: str
    lines: int


class Done(Struct, frozen=True, tag=True):
    number: int
    lines: tuple[str, ...] = ()


class Failed(Struct, frozen=True, tag=True):
    """`problem` as `Problem.to_dict` gives it."""

    number: int
    problem: dict[str, Any]


Command = Check | Open | Pause | Resume | Close | ReadLog
Answer = Done | Failed
DESCRIPTORS: Mapping[type[Struct], int] = {Check: 1, Open: 2}
"""How many come with a command."""

M = TypeVar("M")


def framed(message: Command | Answer) -> bytes:
    body = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(body)) + body


async def read_frame(reader: asyncio.StreamReader, decoder: msgspec.msgpack.Decoder[M]) -> M | None:
    """The next message, None at the end. Raises ValueError for what is none."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > MAX_FRAME:
            raise ValueError(f"a frame of {length} bytes")
        return decoder.decode(await reader.readexactly(length))
    except asyncio.IncompleteReadError:
        return None
