"""One stable TCP address per instance port, whatever the engine does to container addresses.

The listener lives as long as the instance, also while it is stopped: then connections are reset, and nobody else
takes the port. Bytes go from transport to transport without a task per connection; each direction holds at most the
transports' high-water mark (64 KiB), because a full writer pauses its reader. A half-closed connection stays open in
the other direction.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import structlog

from protocol.problems import PortTaken, Problem

log = structlog.get_logger(__name__)

CONNECT_S = 5.0
MAX_CONNECTIONS = 1024
"""Per instance port; more are reset at once."""

Upstream = Callable[[], tuple[str, int] | None]
"""Where the instance answers now; None while it does not run."""


class _Half(asyncio.Protocol):
    """One of the two connections. What it reads is written to `peer`; its pace is the peer's."""

    peer: _Half | None = None
    transport: asyncio.Transport

    def __init__(self, pair: _Pair) -> None:
        self._pair = pair
        self._early = bytearray()
        self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._pair.connected(self)

    def join(self, peer: _Half) -> None:
        """From now on bytes pass to `peer`, those that came too early first."""
        self.peer = peer
        if self._early:
            peer.transport.write(bytes(self._early))
            self._early.clear()

    def data_received(self, data: bytes) -> None:
        self._pair.passed(self)
        if self.peer is not None:
            self.peer.transport.write(data)
            return
        # uvloop begins to read after connection_made, whatever that asked for: keep the one piece, and pause again.
        self._early += data
        self.transport.pause_reading()

    def eof_received(self) -> bool:
        self.ended = True
        self.pass_end()
        return True

    def pass_end(self) -> None:
        """Tell the peer when nothing more will come from here. Once both have ended, both are closed: no transport does
        so by itself."""
        if not self.ended or self.peer is None or self.peer.transport.is_closing():
            return
        if self.peer.transport.can_write_eof():
            self.peer.transport.write_eof()
        if self.peer.ended:
            self.peer.transport.close()
            self.transport.close()

    def pause_writing(self) -> None:
        if self.peer is not None:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None:
            self.peer.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._pair.lost(self, exc)


class _Pair:
    """A client's connection and the one to the service.

    `awaiting`: the client's bytes were the last to pass, so a request is in flight.
    """

    def __init__(self, listener: _Listener) -> None:
        self._listener = listener
        self.client = _Half(self)
        self.service = _Half(self)
        self.awaiting = False
        self._dial: asyncio.Task[None] | None = None

    def connected(self, half: _Half) -> None:
        if half is not self.client:
            return
        half.transport.pause_reading()
        self._listener.knock()
        upstream = self._listener.upstream()
        if upstream is None or len(self._listener.pairs) >= MAX_CONNECTIONS:
            _reset(half.transport)
            return
        self._listener.pairs.add(self)
        self._dial = asyncio.get_running_loop().create_task(self._connect(upstream))

    async def _connect(self, upstream: tuple[str, int]) -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                await asyncio.get_running_loop().create_connection(lambda: self.service, *upstream)
        except OSError as error:  # TimeoutError is one
            log.debug("proxy-connect-failed", upstream=upstream, error=str(error))
            _reset(self.client.transport)
            return
        if self.client.transport.is_closing():
            self.service.transport.abort()
            return
        self.client.join(self.service)
        self.service.join(self.client)
        self.client.pass_end()
        self.service.pass_end()
        self.client.transport.resume_reading()

    def passed(self, half: _Half) -> None:
        self.awaiting = half is self.client
        if self.awaiting:
            self._listener.knock()
        self._listener.traffic()

    def lost(self, half: _Half, exc: Exception | None) -> None:
        other, half.peer = half.peer, None
        if half is self.client:
            self._listener.pairs.discard(self)
            if self._dial is not None:
                self._dial.cancel()
        if other is not None:
            other.peer = None
            if exc is None:
                other.transport.close()
            else:
                _reset(other.transport)

    async def abort(self) -> None:
        if self._dial is not None:
            self._dial.cancel()
            await asyncio.gather(self._dial, return_exceptions=True)
        for half in (self.client, self.service):
            if hasattr(half, "transport"):
                _reset(half.transport)


class _Listener:
    """`traffic` is counted at most once per `interval_s`: an activity signal, not an account."""

    def __init__(
        self, upstream: Upstream, on_traffic: Callable[[], None], on_knock: Callable[[], None], interval_s: float
    ) -> None:
        self.upstream = upstream
        self.knock = on_knock
        self.pairs: set[_Pair] = set()
        self.server: asyncio.Server | None = None
        self._on_traffic = on_traffic
        self._interval_s = interval_s
        self._counted_at = float("-inf")

    def traffic(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._counted_at >= self._interval_s:
            self._counted_at = now
            try:
                self._on_traffic()
            except Problem as problem:  # a full disk: the connection goes on, and the next bytes are noted again
                log.warning("traffic-not-noted", detail=problem.detail)

    async def close(self) -> None:
        if self.server is not None:
            self.server.close()
        for pair in tuple(self.pairs):
            await pair.abort()


class PortProxy:
    """Forwards host ports to instances. `on_traffic` is called with the instance, at most once a second each port;
    `on_knock` whenever a client connects or sends, before the service hears of it."""

    def __init__(
        self,
        host: str,
        on_traffic: Callable[[str], None],
        on_knock: Callable[[str], None] = lambda _: None,
        *,
        interval_s: float = 1.0,
    ) -> None:
        self._host = host
        self._on_traffic = on_traffic
        self._on_knock = on_knock
        self._interval_s = interval_s
        self._listeners: dict[tuple[str, int], _Listener] = {}

    async def open(self, instance: str, container_port: int, upstream: Upstream, *, port: int = 0) -> int:
        """Listen for the instance's port, at `port` if it is given. Returns the host port. Raises PortTaken."""
        key = (instance, container_port)
        if key in self._listeners:
            return _port_of(self._listeners[key])
        listener = _Listener(
            upstream, lambda: self._on_traffic(instance), lambda: self._on_knock(instance), self._interval_s
        )
        loop = asyncio.get_running_loop()
        try:
            listener.server = await loop.create_server(lambda: _Pair(listener).client, self._host, port, backlog=512)
        except OSError as error:
            raise _cannot_listen(self._host, port, error) from error
        self._listeners[key] = listener
        return _port_of(listener)

    def busy(self, instance: str) -> bool:
        """True while a client's request to the instance is in flight."""
        mine = (listener for (owner, _), listener in self._listeners.items() if owner == instance)
        return any(pair.awaiting for listener in mine for pair in listener.pairs)

    async def cut(self, instance: str) -> None:
        """Reset the connections of an instance that was stopped; its ports stay taken."""
        for (owner, _), listener in tuple(self._listeners.items()):
            if owner == instance:
                for pair in tuple(listener.pairs):
                    await pair.abort()

    async def close(self, instance: str) -> None:
        """Give the ports of an instance back."""
        for key in [key for key in self._listeners if key[0] == instance]:
            await self._listeners.pop(key).close()

    async def close_all(self) -> None:
        for instance in {instance for instance, _ in self._listeners}:
            await self.close(instance)


@asynccontextmanager
async def running_proxy(
    host: str,
    on_traffic: Callable[[str], None],
    on_knock: Callable[[str], None] = lambda _: None,
    *,
    interval_s: float = 1.0,
) -> AsyncIterator[PortProxy]:
    proxy = PortProxy(host, on_traffic, on_knock, interval_s=interval_s)
    try:
        yield proxy
    finally:
        await proxy.close_all()


def free_udp_port(host: str) -> int:
    """A UDP port of `host` that nobody has now; the engine publishes it, so it cannot be held until then."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise _cannot_listen(host, 0, error) from error
        port: int = probe.getsockname()[1]
        return port


def _reset(transport: asyncio.Transport) -> None:
    """End a connection so that the other side sees an error rather than a regular end."""
    if not transport.is_closing():
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _port_of(listener: _Listener) -> int:
    assert listener.server is not None
    port: int = listener.server.sockets[0].getsockname()[1]
    return port


def _cannot_listen(host: str, port: int, error: OSError) -> PortTaken:
    if error.errno == errno.EADDRNOTAVAIL:
        return PortTaken(f"{host} is not an address of this machine", fix="Set the agent's host to its LAN address.")
    return PortTaken(f"{host}:{port} cannot be listened on: {error.strerror or error}", fix="Free the port.")
