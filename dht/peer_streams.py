"""Large answers of peers: kept connections, each read by a thread of its own straight into the caller's buffers.

On an event loop every byte of a TLS answer is copied several times by one thread. A blocking socket decrypts into the
buffer where the bytes are verified, and while OpenSSL, SHA-256 or the kernel works, Python's lock is free for others.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from dht.peer_http import MAX_PROBLEM_BYTES, PeerHttp, problem_in, unreachable
from protocol.problems import CorruptContent, TooManyRequests, Unavailable

T = TypeVar("T")

CONNECT_S = 3.0
KEPT_S = 20.0
"""A connection that was idle for longer is closed: the peer would do so soon."""


class Stream:
    """One answer under way. A thread reads it; the loop may look at `received` and `abort` it at any time."""

    def __init__(self) -> None:
        self.received = 0
        """Bytes of the body so far."""
        self.left = 0
        """Bytes of the body that are still to come."""
        self._body: io.BufferedReader | None = None
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._aborted = False

    def read_into(self, buffer: memoryview) -> None:
        """Fill the buffer. Raises Unavailable if the answer ends before.

        `readinto1` takes what is there, so that a slow peer is heard, and copies nothing in between.
        """
        assert self._body is not None
        while buffer:
            size = self._body.readinto1(buffer[: self.left]) if self.left else 0
            if not size:
                raise Unavailable("the peer broke off its answer")
            self.left -= size
            self.received += size
            buffer = buffer[size:]

    @property
    def connected(self) -> bool:
        """A thread reads or waits for the answer."""
        return self._socket is not None

    def abort(self) -> None:
        """Whatever the thread waits for ends at once."""
        with self._lock:
            self._aborted = True
            if self._socket is not None:
                _shut(self._socket)

    def over(self, sock: socket.socket) -> None:
        """The answer comes over this socket. Raises Unavailable if it was aborted already."""
        with self._lock:
            self._socket = sock
            if self._aborted:
                raise Unavailable("given up")

    def answered(self, response: http.client.HTTPResponse) -> None:
        """Raises CorruptContent if the answer does not say how long it is."""
        if response.length is None:
            raise CorruptContent("the peer sent an answer without a length")
        self.left, self._body = response.length, response.fp

    def let_go(self) -> None:
        """The socket is no longer this stream's to abort."""
        with self._lock:
            self._socket = None


class PeerStreams:
    """Use `running_streams`."""

    def __init__(self, peers: PeerHttp, executor: ThreadPoolExecutor, connections: int) -> None:
        self._tls = peers.tls
        self._headers = peers.headers
        self._executor = executor
        self._connections = connections
        self._busy = 0
        self._kept: dict[str, list[tuple[float, http.client.HTTPConnection]]] = {}
        self._lock = threading.Lock()

    async def post(
        self,
        address: str,
        path: str,
        body: bytes,
        read: Callable[[Stream], T],
        *,
        idle_s: float,
        stream: Stream | None = None,
    ) -> T:
        """What `read` makes of the answer, in a thread. A cancelled caller waits until the thread has ended.

        Raises the peer's own Problem; Unavailable if it cannot be reached, breaks off or is silent for `idle_s`;
        TooManyRequests if all connections of this node are busy; what `read` raises.
        """
        if self._busy >= self._connections:
            raise TooManyRequests(f"all {self._connections} connections to peers are busy", retry_after=0.1)
        stream = stream or Stream()
        self._busy += 1
        work = asyncio.get_running_loop().run_in_executor(
            self._executor, lambda: self._post(address, path, body, read, idle_s, stream)
        )
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            stream.abort()
            await asyncio.wait({work})
            if not work.cancelled():
                work.exception()
            raise
        finally:
            self._busy -= 1

    # --- in a thread --------------------------------------------------------------------------------------------------

    def _post(
        self, address: str, path: str, body: bytes, read: Callable[[Stream], T], idle_s: float, stream: Stream
    ) -> T:
        connection: http.client.HTTPConnection | None = None
        try:
            connection, response = self._answer(address, path, body, idle_s, stream)
            if not 200 <= response.status < 300:
                content_type = response.headers.get_content_type()
                raise problem_in(response.status, content_type, response.read(MAX_PROBLEM_BYTES), address)
            stream.answered(response)
            result = read(stream)
            if not stream.left and not response.will_close:
                response.close()
                stream.let_go()
                self._keep(address, connection)
                connection = None
            return result
        except (OSError, http.client.HTTPException) as error:
            raise unreachable(address, error) from error
        finally:
            stream.let_go()
            if connection is not None:
                connection.close()

    def _answer(
        self, address: str, path: str, body: bytes, idle_s: float, stream: Stream
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """A kept connection may have been closed by the peer in the meantime: then one that is new."""
        connection = self._take(address)
        if connection is not None:
            try:
                return connection, self._ask(connection, path, body, idle_s, stream)
            except (ConnectionError, http.client.BadStatusLine, ssl.SSLEOFError, ssl.SSLZeroReturnError):
                stream.let_go()
                connection.close()
            except BaseException:
                connection.close()
                raise
        connection = self._connected(address, stream)
        try:
            return connection, self._ask(connection, path, body, idle_s, stream)
        except BaseException:
            connection.close()
            raise

    def _ask(
        self, connection: http.client.HTTPConnection, path: str, body: bytes, idle_s: float, stream: Stream
    ) -> http.client.HTTPResponse:
        stream.over(connection.sock)
        connection.sock.settimeout(idle_s)
        connection.request("POST", path, body=body, headers=dict(self._headers))
        return connection.getresponse()

    def _connected(self, address: str, stream: Stream) -> http.client.HTTPConnection:
        host, _, port = address.rpartition(":")
        connection = http.client.HTTPConnection(host.strip("[]"), int(port))
        family, kind, _, _, target = socket.getaddrinfo(connection.host, connection.port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind)
        try:
            stream.over(sock)
            sock.settimeout(CONNECT_S)
            sock.connect(target)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_hostname=connection.host, do_handshake_on_connect=False)
                stream.over(sock)
                sock.do_handshake()
        except BaseException:
            stream.let_go()
            sock.close()
            raise
        connection.sock = sock
        return connection

    def _take(self, address: str) -> http.client.HTTPConnection | None:
        now = time.monotonic()
        with self._lock:
            kept = self._kept.get(address, [])
            while kept:
                since, connection = kept.pop()
                if now - since < KEPT_S:
                    return connection
                connection.close()
            self._kept.pop(address, None)
        return None

    def _keep(self, address: str, connection: http.client.HTTPConnection) -> None:
        now = time.monotonic()
        with self._lock:
            self._kept.setdefault(address, []).append((now, connection))
            for other, kept in list(self._kept.items()):
                while kept and now - kept[0][0] >= KEPT_S:
                    kept.pop(0)[1].close()
                if not kept:
                    del self._kept[other]

    def close(self) -> None:
        for kept in self._kept.values():
            for _, connection in kept:
                connection.close()
        self._kept.clear()


@asynccontextmanager
async def running_streams(peers: PeerHttp, *, connections: int) -> AsyncIterator[PeerStreams]:
    """At most `connections` answers at once, from all peers together."""
    executor = ThreadPoolExecutor(connections, thread_name_prefix="content-peer")
    streams = PeerStreams(peers, executor, connections)
    try:
        yield streams
    finally:
        await asyncio.to_thread(executor.shutdown)
        streams.close()


def _shut(sock: socket.socket) -> None:
    """Ends reads and writes of other threads. (An SSLSocket's own method would take the TLS state from under them.)"""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
