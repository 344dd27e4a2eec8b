"""Serves chunks to peers: one thread a connection, because an event loop would copy every byte of TLS several times.

While OpenSSL, SHA-256 or the kernel works on a block, Python's lock is free, and the loop goes on answering phones.
Decided elsewhere: who may stay (`ConnectionLimits`), slots and rate (`Uploads`), what a crowd passes on (`Exchange`,
on the loop, where crowds live). docs/protocol.md has the format.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager

import structlog

from dht.swarm.connection_limits import ConnectionLimits
from dht.swarm.content_wire import (
    CHUNK_HEADER,
    ELSEWHERE,
    LENGTH,
    MAX_REQUEST,
    NO_PROBLEM,
    Asked,
    decode_asked,
    encode_problem,
    framed_size,
)
from dht.swarm.exchange import Exchange
from dht.swarm.peer_streams import shut
from protocol.peers import PeerIdentity
from protocol.problems import KeyNeeded, Problem, TooLarge, TooManyRequests

log = structlog.get_logger(__name__)

HANDSHAKE_S = 5.0
IDLE_S = 30.0
"""So long a connection may be without a request, and so long a peer may take nothing of an answer."""
REQUEST_S = 5.0
"""A request that began is here after this time."""
DRAIN_S = 5.0
_BLOCK = 1 << 20
"""About as much of an answer is read from the disk at once."""
_PIECE = 256 << 10

Identify = Callable[[socket.socket], PeerIdentity | None]


class _BrokenOff(Exception):
    """The connection is of no use any more."""


class ContentServer:
    """Use `serving_content`."""

    def __init__(self, exchange: Exchange, identify: Identify, tls: ssl.SSLContext | None) -> None:
        self._exchange = exchange
        self._identify = identify
        self._tls = tls
        self._event_loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        """Around `_limits`, `_threads` and `_idle`."""
        self._limits: ConnectionLimits[socket.socket] = ConnectionLimits()
        self._threads: dict[socket.socket, threading.Thread] = {}
        self._idle: set[socket.socket] = set()
        self._draining = False
        self._stopping = threading.Event()

    def take(self, sock: socket.socket) -> None:
        """Serve an accepted connection from now on; the client's `OPENING` was read. Does not block."""
        sock.settimeout(HANDSHAKE_S)
        if self._tls is not None:
            try:
                sock = self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            except OSError:  # it has gone already
                sock.close()
                return
        thread = threading.Thread(target=self._serve, args=(sock,), name="content-server")
        with self._lock:
            self._threads[sock] = thread
            for other in self._limits.arrived(sock):
                shut(other)
        thread.start()

    # --- in a thread --------------------------------------------------------------------------------------------------

    def _serve(self, sock: socket.socket) -> None:
        try:
            if isinstance(sock, ssl.SSLSocket):
                sock.do_handshake()
            peer, refusal = self._admitted(sock)
            while body := self._request(sock):
                if refusal is None and self._identify(sock) is None:  # its certificate ended meanwhile
                    refusal = _stranger()
                if refusal is not None:  # only now: a connection that is closed with bytes unread loses what was sent
                    raise refusal
                self._answer(sock, peer, body)
        except Problem as problem:
            with contextlib.suppress(OSError):
                sock.sendall(encode_problem(problem))
        except _BrokenOff:
            pass
        except OSError as error:
            log.debug("content-connection-broke", error=str(error))
        except Exception:
            log.exception("unforeseen-failure", what="content server")
        finally:
            sock.close()
            with self._lock:
                self._limits.gone(sock)
                self._threads.pop(sock, None)

    def _admitted(self, sock: socket.socket) -> tuple[str, Problem | None]:
        """Who it is, and what to tell it if it may not ask."""
        peer = self._identify(sock)
        if peer is None:
            return "", _stranger()
        with self._lock:
            if not self._limits.identified(sock, peer.node):
                refusal = "this node has too many connections of yours"
                return "", TooManyRequests(refusal, fix="Use those that are open.", retry_after=1.0)
        return peer.node, None

    def _request(self, sock: socket.socket) -> bytes:
        """The next request; empty if none comes: the peer is done, or this node is."""
        with self._lock:
            if self._draining:
                return b""
            self._idle.add(sock)
        try:
            head = _received(sock, LENGTH.size, IDLE_S)
        finally:
            with self._lock:
                self._idle.discard(sock)
        (length,) = LENGTH.unpack(head)
        if not 0 < length <= MAX_REQUEST:
            raise TooLarge(f"a list of chunks has at most {MAX_REQUEST} bytes")
        return _received(sock, length, REQUEST_S)

    def _answer(self, sock: socket.socket, peer: str, body: bytes) -> None:
        asked = decode_asked(body)
        sock.settimeout(IDLE_S)
        try:
            with self._exchange.uploads.slot(peer):
                lengths = self._lengths(peer, asked)
                self._send_chunks(sock, peer, list(zip(asked.chunks, lengths, strict=True)))
        except TooManyRequests as problem:
            sock.sendall(encode_problem(problem))
        except TimeoutError:
            log.warning("upload-stalled", peer=peer)
            raise _BrokenOff from None

    def _lengths(self, peer: str, asked: Asked) -> list[int]:
        """What the answer says of each chunk: its length, 0 or ELSEWHERE."""
        lengths = self._exchange.sizes(asked.chunks)
        if asked.crowd is None:
            return lengths
        decision = self._exchange.elsewhere(asked.crowd, peer, asked.chunks)
        passed_on = asyncio.run_coroutine_threadsafe(decision, self._event_loop).result()
        return [ELSEWHERE if d in passed_on else n for d, n in zip(asked.chunks, lengths, strict=True)]

    def _send_chunks(self, sock: socket.socket, peer: str, wanted: Sequence[tuple[str, int]]) -> None:
        groups = list(_grouped(wanted))
        largest = max(sum(framed_size(length) for _, length in group) for group in groups)
        buffer = memoryview(bytearray(len(NO_PROBLEM) + largest))
        buffer[: len(NO_PROBLEM)] = NO_PROBLEM
        filled = len(NO_PROBLEM)
        for group in groups:
            for digest, length in group:
                CHUNK_HEADER.pack_into(buffer, filled, length)
                end = filled + framed_size(length)
                if length not in (0, ELSEWHERE):
                    chunk = buffer[filled + CHUNK_HEADER.size : end]
                    if not self._exchange.read_chunk_into(digest, chunk):
                        raise _BrokenOff  # promised, and gone or damaged since: the asker must not take it for an end
                filled = end
            self._send(sock, peer, buffer[:filled])
            filled = 0

    def _send(self, sock: socket.socket, peer: str, view: memoryview) -> None:
        while view:
            piece, view = view[:_PIECE], view[_PIECE:]
            if (delay := self._exchange.uploads.turn(len(piece))) and self._stopping.wait(delay):
                raise _BrokenOff
            sock.sendall(piece)
            self._exchange.sent.add(peer, "chunk", len(piece))

    # --- the end ------------------------------------------------------------------------------------------------------

    async def close(self, drain_s: float) -> None:
        """Idle connections end now, answers under way may take `drain_s`."""
        with self._lock:
            self._draining = True
            threads = list(self._threads.values())
            for sock in self._idle:
                shut(sock)
        await asyncio.to_thread(_join, threads, drain_s)
        self._stopping.set()
        with self._lock:
            for sock in self._threads:
                shut(sock)
        await asyncio.to_thread(_join, threads, HANDSHAKE_S)


@asynccontextmanager
async def serving_content(
    exchange: Exchange, identify: Identify, *, tls: ssl.SSLContext | None, drain_s: float = DRAIN_S
) -> AsyncIterator[ContentServer]:
    """`identify` says who is at the other end, after the TLS handshake; None: nobody who may ask."""
    server = ContentServer(exchange, identify, tls)
    try:
        yield server
    finally:
        await server.close(drain_s)


def _stranger() -> KeyNeeded:
    return KeyNeeded("only members of the mesh may ask this", fix="Join with `cornerstore bootstrap join`.")


def _grouped(wanted: Sequence[tuple[str, int]]) -> Iterator[Sequence[tuple[str, int]]]:
    """Runs of chunks of about a block in all."""
    group: list[tuple[str, int]] = []
    size = 0
    for chunk, length in wanted:
        if group and size + framed_size(length) > _BLOCK:
            yield group
            group, size = [], 0
        group.append((chunk, length))
        size += framed_size(length)
    yield group


def _received(sock: socket.socket, size: int, within_s: float) -> bytes:
    """Raises _BrokenOff if the peer leaves before, or is slower."""
    deadline = time.monotonic() + within_s
    received = bytearray()
    while len(received) < size:
        left = deadline - time.monotonic()
        if left <= 0:
            raise _BrokenOff
        sock.settimeout(left)
        try:
            piece = sock.recv(size - len(received))
        except TimeoutError:
            raise _BrokenOff from None
        if not piece:
            raise _BrokenOff
        received += piece
    return bytes(received)


def _join(threads: Sequence[threading.Thread], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
