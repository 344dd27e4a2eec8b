"""Chunks from peers: kept connections, each read by a thread of its own straight into the caller's buffers.

On an event loop every byte of a TLS answer is copied several times by one thread. A blocking socket decrypts into the
buffer where the bytes are verified, and while OpenSSL, SHA-256 or the kernel works, Python's lock is free for others.
The format is in `dht.swarm.content_wire`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from dht.peer_http import MAX_PROBLEM_BYTES, PeerHttp, decode_problem, unreachable
from dht.swarm.content_wire import LENGTH, OPENING
from protocol.problems import CorruptContent, KeyNeeded, NotFound, Problem, TooManyRequests, Unavailable

_OF_PEERS = (TooManyRequests, NotFound, KeyNeeded, CorruptContent, Unavailable)
"""Problems that mean the same of a peer as of this node. A full disk does not: it is the peer's, and ends no fetch."""

T = TypeVar("T")

CONNECT_S = 3.0
KEPT_S = 20.0
"""A connection that was idle for longer is closed: the peer would do so soon."""
MAX_SESSIONS = 256


class Stream:
    """One answer under way. A thread reads it; the loop may look at `received` and `abort` it at any time."""

    def __init__(self) -> None:
        self.received = 0
        """Bytes so far."""
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._aborted = False

    def read_into(self, buffer: memoryview) -> None:
        """Fill the buffer. Raises Unavailable if the answer ends before; a slow peer is heard with every piece."""
        assert self._socket is not None
        while buffer:
            size = self._socket.recv_into(buffer)
            if not size:
                raise Unavailable("the peer broke off its answer")
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
                shut(self._socket)

    def over(self, sock: socket.socket) -> None:
        """The answer comes over this socket. Raises Unavailable if it was aborted already."""
        with self._lock:
            self._socket = sock
            if self._aborted:
                raise Unavailable("given up")

    def let_go(self) -> None:
        """The socket is no longer this stream's to abort."""
        with self._lock:
            self._socket = None


class PeerStreams:
    """Use `running_streams`."""

    def __init__(self, peers: PeerHttp, executor: ThreadPoolExecutor, connections: int) -> None:
        self._tls = peers.tls
        self._source = peers.source
        self._executor = executor
        self._connections = connections
        self._busy = 0
        self._kept: dict[str, list[tuple[float, socket.socket]]] = {}
        self._sessions: dict[str, ssl.SSLSession] = {}
        """Of TLS, by address, the latest last: a new connection that goes on from one costs a third of a handshake."""
        self._lock = threading.Lock()

    async def ask(
        self,
        address: str,
        request: bytes,
        read: Callable[[Stream], T],
        *,
        idle_s: float,
        stream: Stream | None = None,
    ) -> T:
        """What `read`, in a thread, makes of the answer, all of which it must read. A cancelled caller waits until the
        thread has ended.

        Raises the peer's own Problem if it could be one of ours, too; Unavailable for its others, and if it cannot be
        reached, breaks off or is silent for `idle_s`; TooManyRequests if all connections of this node are busy; what
        `read` raises.
        """
        if self._busy >= self._connections:
            raise TooManyRequests(f"all {self._connections} connections to peers are busy", retry_after=0.1)
        stream = stream or Stream()
        self._busy += 1
        work = asyncio.get_running_loop().run_in_executor(
            self._executor, lambda: self._ask(address, request, read, idle_s, stream)
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

    def _ask(self, address: str, request: bytes, read: Callable[[Stream], T], idle_s: float, stream: Stream) -> T:
        sock: socket.socket | None = None
        try:
            sock, problem_size = self._answered(address, request, idle_s, stream)
            outcome = _problem(stream, problem_size, address) if problem_size else read(stream)
            stream.let_go()
            self._keep(address, sock)
            sock = None
        except (OSError, UnicodeError) as error:
            raise unreachable(address, error) from error
        finally:
            stream.let_go()
            if sock is not None:
                sock.close()
        if isinstance(outcome, Problem):
            if isinstance(outcome, KeyNeeded):  # the session goes on from a certificate that has ended by now
                with self._lock:
                    self._sessions.pop(address, None)
            raise outcome
        return outcome

    def _answered(self, address: str, request: bytes, idle_s: float, stream: Stream) -> tuple[socket.socket, int]:
        """A connection on which an answer begins, and the length of the problem that it is (0: chunks follow).

        A kept connection may have been closed by the peer in the meantime: then one that is new.
        """
        sock = self._take(address)
        if sock is not None:
            try:
                return sock, _begin(sock, request, idle_s, stream)
            except (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
                stream.let_go()
                sock.close()
            except BaseException:
                sock.close()
                raise
        sock = self._connected(address, stream)
        try:
            problem_size = _begin(sock, request, idle_s, stream)
            self._remember_session(address, sock)
            return sock, problem_size
        except BaseException:
            sock.close()
            raise

    def _connected(self, address: str, stream: Stream) -> socket.socket:
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        family, kind, _, _, target = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind)
        try:
            stream.over(sock)
            sock.settimeout(CONNECT_S)
            if self._source:
                sock.bind((self._source, 0))
            sock.connect(target)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(OPENING)
            if self._tls is not None:
                with self._lock:
                    session = self._sessions.get(address)
                sock = self._tls.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False, session=session)
                stream.over(sock)
                sock.do_handshake()
        except BaseException:
            stream.let_go()
            sock.close()
            raise
        return sock

    def _remember_session(self, address: str, sock: socket.socket) -> None:
        """The session of a new connection, which came with its first answer. Python copies it, certificates and all,
        whenever it is looked at, and is locked meanwhile: not after each answer."""
        session = sock.session if isinstance(sock, ssl.SSLSocket) else None
        if session is None:
            return
        with self._lock:
            self._sessions.pop(address, None)
            self._sessions[address] = session
            if len(self._sessions) > MAX_SESSIONS:
                del self._sessions[next(iter(self._sessions))]

    def _take(self, address: str) -> socket.socket | None:
        now = time.monotonic()
        with self._lock:
            kept = self._kept.get(address, [])
            while kept:
                since, sock = kept.pop()
                if now - since < KEPT_S:
                    return sock
                sock.close()
            self._kept.pop(address, None)
        return None

    def _keep(self, address: str, sock: socket.socket) -> None:
        now = time.monotonic()
        with self._lock:
            self._kept.setdefault(address, []).append((now, sock))
            for other, kept in list(self._kept.items()):
                while kept and now - kept[0][0] >= KEPT_S:
                    kept.pop(0)[1].close()
                if not kept:
                    del self._kept[other]

    def close(self) -> None:
        for kept in self._kept.values():
            for _, sock in kept:
                sock.close()
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


def _begin(sock: socket.socket, request: bytes, idle_s: float, stream: Stream) -> int:
    """Ask, and read how the answer begins. Raises ConnectionError if the peer closed the connection before."""
    stream.over(sock)
    sock.settimeout(idle_s)
    sock.sendall(request)
    head = bytearray(LENGTH.size)
    size = sock.recv_into(head)
    if not size:
        raise ConnectionResetError("closed before it answered")
    stream.read_into(memoryview(head)[size:])
    return int(LENGTH.unpack(head)[0])


def _problem(stream: Stream, size: int, address: str) -> Problem:
    if size > MAX_PROBLEM_BYTES:
        raise CorruptContent(f"a problem of {size} bytes")
    body = bytearray(size)
    stream.read_into(memoryview(body))
    problem = decode_problem(bytes(body)) or CorruptContent(f"node {address} answered with a malformed problem")
    return problem if isinstance(problem, _OF_PEERS) else Unavailable(f"node {address} answered: {problem.detail}")


def shut(sock: socket.socket) -> None:
    """Ends reads and writes of other threads. (An SSLSocket's own method would take the TLS state from under them.)"""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
