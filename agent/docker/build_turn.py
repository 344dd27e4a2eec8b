"""Agents of one machine that share an engine take turns at one image: the second finds it made.

The turn is a socket in the kernel's abstract namespace (unix(7)), bound and never listened at. It needs no folder that
both may write to, one process at a time has it, and the kernel gives it back when that process dies. Its name is made
of the engine's id, which only those know who may use the engine. Agents in another network namespace, or on another
machine with the same remote engine, do not see it: they would make the image twice, which costs time and harms nothing.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

LOOK_S = 0.2
"""Between two looks at a turn that somebody has: a build takes seconds."""


@asynccontextmanager
async def build_turn(engine: str, tag: str, on_wait: Callable[[], None]) -> AsyncIterator[None]:
    """For as long as the block works on `tag` at the engine of this id, nobody else does; `on_wait` is told once if
    somebody has to be waited for."""
    name = b"\0cornerstore-build-" + hashlib.sha256(f"{engine} {tag}".encode()).hexdigest().encode()
    waiting = False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as turn:
        while not _taken(turn, name):
            if not waiting:
                on_wait()
            waiting = True
            await asyncio.sleep(LOOK_S)
        yield


def _taken(turn: socket.socket, name: bytes) -> bool:
    try:
        turn.bind(name)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True
