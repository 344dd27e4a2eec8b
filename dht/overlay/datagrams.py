"""The network as the overlay sees it, and its UDP implementation."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NamedTuple, Protocol, cast

import structlog

from protocol.problems import ConfigError, PortTaken

log = structlog.get_logger(__name__)
RECEIVE_BUFFER = 1 << 20


class Address(NamedTuple):
    """A numeric IP address and a UDP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


OnDatagram = Callable[[bytes, Address], None]


class DatagramTransport(Protocol):
    """Carries datagrams between addresses.

    A datagram may be lost, doubled, delayed or overtaken, and it may come from anybody; it arrives whole or not at
    all. `send` never blocks and never raises, whatever the destination. The receiver's callback runs in the event
    loop, never inside `send`, and not after the transport's context has ended.
    """

    @property
    def local(self) -> Address:
        """Where this transport listens; the port is the actual one."""

    def send(self, datagram: bytes, address: Address) -> None: ...


OpenTransport = Callable[[OnDatagram], AbstractAsyncContextManager[DatagramTransport]]


def udp_transport(host: str, port: int) -> OpenTransport:
    """UDP on `host:port`; port 0 takes a free one. Opening raises PortTaken or ConfigError."""

    @asynccontextmanager
    async def opened(on_datagram: OnDatagram) -> AsyncIterator[DatagramTransport]:
        loop = asyncio.get_running_loop()
        try:
            transport, protocol = await loop.create_datagram_endpoint(
                lambda: _Udp(on_datagram), local_addr=(host, port)
            )
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortTaken(f"UDP port {port} on {host} is in use", fix="Choose another port.") from error
            raise ConfigError(f"cannot listen on UDP {host}:{port}: {error.strerror or error}") from error
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        try:
            yield protocol
        finally:
            transport.close()
            await protocol.closed.wait()

    return opened


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, on_datagram: OnDatagram) -> None:
        self._on_datagram = on_datagram
        self._transport: asyncio.DatagramTransport | None = None
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.closed.set()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._on_datagram(data, Address(addr[0], addr[1]))

    def error_received(self, exc: Exception) -> None:
        log.debug("datagram-not-delivered", error=str(exc))

    @property
    def local(self) -> Address:
        assert self._transport is not None
        name = self._transport.get_extra_info("sockname")
        return Address(name[0], name[1])

    def send(self, datagram: bytes, address: Address) -> None:
        if self._transport is None:
            return
        try:
            self._transport.sendto(datagram, address)
        except (OSError, ValueError) as error:  # uvloop raises at once what asyncio hands to error_received
            self.error_received(error)
