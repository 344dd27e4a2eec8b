"""One port, two kinds of guests: HTTP goes to the event loop, connections for content to threads of their own.

The first byte tells them apart (`OPENING` in dht/swarm/content_wire.py), and is only peeked at, so that TLS finds it
where it was. Until a connection has said what it is, it costs a task and no thread; it has `HELLO_S`; of too many the
oldest goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog

from dht.tasks import OwnedTasks

log = structlog.get_logger(__name__)

HELLO_S = 10.0
MAX_WAITING = 512
REST_S = 0.5
"""After the system refused a connection, for want of descriptors for instance."""

Protocol = Callable[[], asyncio.BaseProtocol]


class _Door:
    def __init__(
        self,
        sock: socket.socket,
        http: Protocol,
        tls: ssl.SSLContext | None,
        opening: bytes,
        take: Callable[[socket.socket], None],
        tasks: OwnedTasks,
    ) -> None:
        self._sock = sock
        self._http = http
        self._tls = tls
        self._opening = opening
        self._take = take
        self._tasks = tasks
        self._waiting: dict[socket.socket, asyncio.Task[None]] = {}

    async def accept(self) -> None:
        """Until cancelled."""
        while True:
            try:
                sock, _ = await asyncio.get_running_loop().sock_accept(self._sock)
            except ConnectionError:
                continue
            except OSError as error:
                log.error("connection-refused", error=str(error))
                await asyncio.sleep(REST_S)
                continue
            if len(self._waiting) >= MAX_WAITING:
                next(iter(self._waiting.values())).cancel()
            self._waiting[sock] = self._tasks.run(self._admit(sock), name="admit a connection")

    async def _admit(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        mine = True
        try:
            async with asyncio.timeout(HELLO_S):
                is_http = await _first_byte(sock) != self._opening[:1]
                opening = b"" if is_http else await _read(sock, len(self._opening))
            self._waiting.pop(sock)
            if is_http:
                mine = False
                await loop.connect_accepted_socket(self._http, sock, ssl=self._tls)
            elif opening == self._opening:
                mine = False
                self._take(sock)
        except OSError as error:  # a deadline, a broken connection, a failed handshake: everyday
            log.debug("connection-not-admitted", error=str(error) or type(error).__name__)
        finally:
            self._waiting.pop(sock, None)
            if mine:
                sock.close()


async def _first_byte(sock: socket.socket) -> bytes:
    """Empty if the client left. The byte stays where it is."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            readable = asyncio.Event()
            loop.add_reader(sock, readable.set)
            try:
                await readable.wait()
            finally:
                loop.remove_reader(sock)


async def _read(sock: socket.socket, size: int) -> bytes:
    """Less if the client leaves before."""
    received = b""
    while len(received) < size:
        piece = await asyncio.get_running_loop().sock_recv(sock, size - len(received))
        if not piece:
            break
        received += piece
    return received


@asynccontextmanager
async def door(
    sock: socket.socket,
    http: Protocol,
    *,
    tls: ssl.SSLContext | None,
    opening: bytes,
    take: Callable[[socket.socket], None],
) -> AsyncIterator[None]:
    """Accept on a listening socket during the block, and close it at the end.

    `take` is handed connections that began with `opening`, which is read by then, and must not block.
    """
    async with OwnedTasks() as tasks:
        accepting = asyncio.create_task(_Door(sock, http, tls, opening, take, tasks).accept(), name="accept peers")
        try:
            yield
        finally:
            accepting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await accepting
            sock.close()
