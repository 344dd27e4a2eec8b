"""How long a connection to another node is used: while that node lives, and while the certificates of both are good.

TLS looks at dates only when a connection begins. A kept connection, or a WebSocket, could otherwise go on for as long
as both ends like, with a certificate that ended long ago or that was replaced.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import aiohttp
from aiohttp import AddrInfoType
from aiohttp.connector import Connection

KEEPALIVE_S = 4.0
"""Less than any `idle_s`: aiohttp may leave the read timer of a finished answer running, and reuse the connection."""
SILENT_S = 5
"""After so long without a sign of life from the other machine's network stack a connection counts as broken, whatever
it was waiting for: a cut line tells nobody, and TCP by itself would go on for a quarter of an hour."""
RETIRE_S = 60.0
"""A kept connection is left so long before its end: the other node's clock may be ahead, and refuse a request."""


class Lives:
    """`ends` is asked once of each connection, when it is new: when the first of its certificates ends, Unix s."""

    def __init__(self, ends: Callable[[ssl.SSLObject], float], clock: Callable[[], float] = time.time) -> None:
        self._ends = ends
        self._clock = clock
        self._until: WeakKeyDictionary[ssl.SSLObject, float] = WeakKeyDictionary()

    def left_s(self, connection: ssl.SSLObject) -> float:
        """Seconds that it may still last."""
        if connection not in self._until:
            self._until[connection] = self._ends(connection)
        return self._until[connection] - self._clock()

    def may_serve_again(self, connection: ssl.SSLObject) -> bool:
        """Whether it is good for one more request. A new one is: its certificates were looked at just now."""
        is_new = connection not in self._until
        return self.left_s(connection) > RETIRE_S or is_new


class PeerConnector(aiohttp.TCPConnector):
    """For the session of a `PeerHttp`. `lives` None: a connection is kept for as long as it is used, for tests only.

    Not `watchful`: where a body may be held up for longer than a peer may be silent.
    """

    def __init__(self, lives: Lives | None = None, *, watchful: bool = True) -> None:
        super().__init__(keepalive_timeout=KEEPALIVE_S, socket_factory=watchful_socket if watchful else None)
        self._lives = lives

    async def connect(self, *args: Any, **kwargs: Any) -> Connection:
        """A kept connection that is still good, or a new one."""
        while True:
            connection = await super().connect(*args, **kwargs)
            tls = connection.transport.get_extra_info("ssl_object") if connection.transport is not None else None
            if self._lives is None or tls is None or self._lives.may_serve_again(tls):
                return connection
            connection.close()


def watchful_socket(info: AddrInfoType) -> socket.socket:
    """One that is closed by the system when the other machine is gone (`tcp(7)`): a peer that works for minutes before
    it answers still acknowledges."""
    family, kind, protocol, _, _ = info
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, SILENT_S - 2)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_S * 1000)
    return made
