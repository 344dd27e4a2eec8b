"""The way into a listener: who may stay is decided in `node.connections`, and HTTP is told from content.

One port may have two kinds of guests: HTTP goes to the event loop, connections for content to threads of their own. The
first byte tells them apart (`OPENING` in dht/swarm/content_wire.py), and is only peeked at, so that TLS finds it where
it was. Until a connection has said what it is, it costs a task and no thread, and it has `HELLO_S`.

Who may not stay is told so where HTTP can be spoken before anything else is agreed: not where TLS comes first.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import msgspec
import structlog

from dht.quiet import Quiet
from dht.tasks import OwnedTasks
from node.connections import Connections
from protocol.problems import TooManyRequests

log = structlog.get_logger(__name__)

HELLO_S = 10.0
"""For the first byte, and then for the handshake."""
REST_S = 0.5
"""After the system refused a connection, for want of descriptors for instance."""
RETRY_AFTER_S = 5
GOODBYE_S = 1.0
"""How long who is refused may take to hear why."""
MAX_GOODBYES = 32
"""Who is refused beyond so many at once is not told why."""
_IGNORED = 64 << 10
_AT_ONCE = 64

HttpProtocol = Callable[[], asyncio.Protocol]


class Content:
    """What else comes through the door: connections that begin with `opening`. `take` gets them, with that read, and
    must not block."""

    def __init__(self, opening: bytes, take: Callable[[socket.socket], None]) -> None:
        self.opening = opening
        self.take = take


class Guest(asyncio.Protocol):
    """A connection. Once it speaks HTTP, asyncio's view of it: everything is passed on to what `http` makes."""

    __slots__ = ("_connections", "_http", "_make", "_transport", "handed_over", "task")

    def __init__(self, http: HttpProtocol, connections: Connections[Guest]) -> None:
        self._make = http
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self.task: asyncio.Task[None] | None = None
        """That brings it in."""
        self.handed_over = False
        """Whether somebody else closes the socket."""

    def works(self) -> None:
        """A request is being answered, and the connection does not make room for another."""
        self._connections.working(self)

    def waits(self) -> None:
        self._connections.waiting(self)

    def is_member(self) -> None:
        self._connections.member(self)

    def shut(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        elif self.task is not None:
            self.task.cancel()

    def brought_in(self, sock: socket.socket) -> None:
        """Or not, when it was cut off on the way."""
        if not self.handed_over:
            sock.close()
        if self._transport is None:
            self._connections.gone(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._http = self._make()
        self._http.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.gone(self)
        self._http.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._http.data_received(data)

    def eof_received(self) -> bool | None:
        return self._http.eof_received()

    def pause_writing(self) -> None:
        self._http.pause_writing()

    def resume_writing(self) -> None:
        self._http.resume_writing()


def guest_of(transport: asyncio.BaseTransport | None) -> Guest | None:
    """The connection that a request came by, unless it did not come by a door."""
    protocol = transport.get_protocol() if transport is not None else None
    return protocol if isinstance(protocol, Guest) else None


class _Door:
    def __init__(
        self,
        sock: socket.socket,
        http: HttpProtocol,
        connections: Connections[Guest],
        tls: ssl.SSLContext | None,
        content: Content | None,
        tasks: OwnedTasks,
    ) -> None:
        self._sock = sock
        self._http = http
        self._connections = connections
        self._tls = tls
        self._content = content
        self._tasks = tasks
        self._quiet = Quiet()
        self._goodbyes = 0
        self._resting: asyncio.TimerHandle | None = None

    def open(self) -> None:
        asyncio.get_running_loop().add_reader(self._sock, self._accept)

    def close(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
        asyncio.get_running_loop().remove_reader(self._sock)

    def _accept(self) -> None:
        """Who waits outside, but not so many that others have to wait."""
        for _ in range(_AT_ONCE):
            try:
                sock, (address, *_) = self._sock.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue
            except OSError as error:
                self._rest(error)
                return
            sock.setblocking(False)
            self._meet(sock, address)

    def _rest(self, error: OSError) -> None:
        if self._may_say(str(error)):
            log.error("connection-refused", error=str(error))
        self.close()
        self._resting = asyncio.get_running_loop().call_later(REST_S, self.open)

    def _meet(self, sock: socket.socket, address: str) -> None:
        guest = Guest(self._http, self._connections)
        leaving = self._connections.arrived(guest, address)
        if leaving is not None:
            self._tell(address, refused=leaving is guest)
        if leaving is guest:
            self._refuse(sock, address)
            return
        if leaving is not None:
            leaving.shut()
        guest.task = self._tasks.run(self._bring_in(guest, sock), name="bring in a connection")
        guest.task.add_done_callback(lambda _: guest.brought_in(sock))

    def _tell(self, address: str, *, refused: bool) -> None:
        """Once: of this address, or of all if it does not have too many itself."""
        of_one, in_all = self._connections.of(address), len(self._connections)
        if self._may_say(address if of_one >= self._connections.of_one_address else "all"):
            log.warning("connections-crowded", address=address, has=of_one, in_all=in_all, refused=refused)

    def _may_say(self, what: str) -> bool:
        return self._quiet.may_say(what, asyncio.get_running_loop().time())

    # --- who may stay -------------------------------------------------------------------------------------------------

    async def _bring_in(self, guest: Guest, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            if self._content is not None:
                async with asyncio.timeout(HELLO_S):
                    opening = await _opening(sock, self._content.opening)
                if opening:
                    guest.handed_over = opening == self._content.opening
                    if guest.handed_over:
                        self._content.take(sock)
                    return
            guest.handed_over = True
            limit = HELLO_S if self._tls else None
            await loop.connect_accepted_socket(lambda: guest, sock, ssl=self._tls, ssl_handshake_timeout=limit)
        except OSError as error:  # a deadline, a broken connection, a failed handshake: everyday
            log.debug("connection-not-admitted", error=str(error) or type(error).__name__)

    # --- who may not --------------------------------------------------------------------------------------------------

    def _refuse(self, sock: socket.socket, address: str) -> None:
        if self._tls is not None or self._goodbyes >= MAX_GOODBYES:
            sock.close()
            return
        self._goodbyes += 1
        self._tasks.run(self._say_goodbye(sock, address), name="refuse a connection")

    async def _say_goodbye(self, sock: socket.socket, address: str) -> None:
        """Read on until the client has heard: who closes before takes its words back (RFC 9112, section 9.6)."""
        loop = asyncio.get_running_loop()
        most = self._connections.of_one_address
        whose = f"{address} has" if self._connections.of(address) >= most else "all together have"
        try:
            with contextlib.suppress(OSError):  # TimeoutError too
                async with asyncio.timeout(GOODBYE_S):
                    await loop.sock_sendall(sock, refusal(f"{whose} as many connections as this node allows"))
                    sock.shutdown(socket.SHUT_WR)
                    ignored = 0
                    while ignored < _IGNORED and (piece := await loop.sock_recv(sock, 4096)):
                        ignored += len(piece)
        finally:
            self._goodbyes -= 1
            sock.close()


def refusal(detail: str) -> bytes:
    """A whole HTTP response."""
    problem = TooManyRequests(
        detail, fix="Close those that are not used, or ask again later.", retry_after=RETRY_AFTER_S
    )
    body = msgspec.json.encode(problem.to_dict())
    head = (
        f"HTTP/1.1 {problem.status} Too Many Requests\r\nContent-Type: application/problem+json\r\n"
        f"Content-Length: {len(body)}\r\nRetry-After: {RETRY_AFTER_S}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


async def _opening(sock: socket.socket, expected: bytes) -> bytes:
    """What is there instead of HTTP: the first bytes, as many as are expected, if the first one fits.

    Else empty, and nothing was read."""
    if await _first_byte(sock) != expected[:1]:
        return b""
    return await _read(sock, len(expected))


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
    http: HttpProtocol,
    connections: Connections[Guest],
    *,
    tls: ssl.SSLContext | None,
    content: Content | None,
) -> AsyncIterator[None]:
    """Accept on a listening socket during the block, and close it at the end. HTTP connections go on after it."""
    async with OwnedTasks() as tasks:
        entrance = _Door(sock, http, connections, tls, content, tasks)
        entrance.open()
        try:
            yield
        finally:
            entrance.close()
            sock.close()
