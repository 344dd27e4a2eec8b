"""HTTP to other nodes of the mesh: mutual TLS, bounded answers, problems translated once."""

from __future__ import annotations

import asyncio
import errno
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from dht.clocks import Clocks
from dht.peer_connections import Lives
from protocol import tracing
from protocol.bounded import read_bounded
from protocol.network_errors import network_cause, speaks_no_tls
from protocol.peers import PeerIdentity
from protocol.problems import BadRequest, Problem, Unavailable
from protocol.tracing import current_header

PEER: web.RequestKey[PeerIdentity] = web.RequestKey("peer", PeerIdentity)
"""Where a handler of the node-to-node listener finds who asks."""
PEER_UNTIL: web.RequestKey[float] = web.RequestKey("peer_until", float)
"""And until when it is known to be that one, Unix s: its certificate ends then. What lasts longer has to look again."""

WRONG_PORT_FIX = "Check the port: it must be the node-to-node port (7401 by default), not the one for phones."
MAX_PROBLEM_BYTES = 64 << 10
_NETWORK_ERRORS = (aiohttp.ClientError, ConnectionError, TimeoutError, ssl.SSLError)
"""What a broken connection raises while a body is read. TimeoutError is an OSError: a total or idle timeout."""


class PeerHttp:
    """Requests to `host:port` addresses of node-to-node listeners. `tls` None: plain HTTP, for tests only.

    `lives`: of the session's connections.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        tls: ssl.SSLContext | None,
        *,
        source: str = "",
        lives: Lives | None = None,
    ) -> None:
        self._session = session
        self.lives = lives
        self.tls = tls
        self.source = source
        """The address that content is asked for from; empty: the system's choice."""
        self.clocks = Clocks()
        self._scheme = "https" if tls is not None else "http"

    def over(self, session: aiohttp.ClientSession) -> PeerHttp:
        """The same over connections of another session."""
        return PeerHttp(session, self.tls, lives=self.lives)

    @property
    def headers(self) -> Mapping[str, str]:
        """Of every request."""
        return self._session.headers

    def url(self, address: str, path: str) -> str:
        return f"{self._scheme}://{address}{path}"

    @asynccontextmanager
    async def request(
        self,
        method: str,
        address: str,
        path: str,
        *,
        timeout_s: float,
        idle_s: float | None = None,
        passed_on: str = "",
        **kwargs: Any,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer with a 2xx status, or of any status with the header `passed_on`: then it is not the peer's own.

        Raises the peer's own Problem, or Unavailable if it cannot be reached.

        `timeout_s` bounds the whole exchange, `idle_s` the silence between two reads. The network's errors are
        translated in the block too, since the body is read there; the block's own errors (a full disk) pass through.
        """
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(timeout_s, 3.0), sock_read=idle_s)
        answered = False
        if trace := current_header():
            kwargs["headers"] = {**kwargs.get("headers", {}), tracing.HEADER: trace}
        try:
            async with self._session.request(
                method, self.url(address, path), ssl=self.tls or True, timeout=timeout, allow_redirects=False, **kwargs
            ) as response:
                self.clocks.heard(address, response.headers.get("Date", ""), time.time(), time.monotonic())
                if not 200 <= response.status < 300 and passed_on not in response.headers:
                    raise await _problem(response, address)
                answered = True
                yield response
        except (aiohttp.ClientError, OSError, UnicodeError) as error:
            if answered and not isinstance(error, _NETWORK_ERRORS):
                raise
            raise unreachable(address, error) from error

    @asynccontextmanager
    async def websocket(
        self, address: str, path: str, *, max_frame: int
    ) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """An open WebSocket. Raises Unavailable if it cannot be opened or breaks, and in the block once one of its
        certificates ended: it must be opened anew."""
        try:
            async with asyncio.timeout(5.0):
                socket = await self._session.ws_connect(
                    self.url(address, path), ssl=self.tls or True, max_msg_size=max_frame, heartbeat=10.0
                )
        except (aiohttp.ClientError, OSError, UnicodeError) as error:
            raise unreachable(address, error) from error
        async with socket:
            tls = socket.get_extra_info("ssl_object")
            left_s = None if self.lives is None or tls is None else self.lives.left_s(tls)
            try:
                async with asyncio.timeout(left_s) as life:
                    await asyncio.sleep(0)  # one that is over already does not begin
                    yield socket
            except TimeoutError:
                if not life.expired():
                    raise
                raise Unavailable(f"a certificate of the connection to node {address} ended") from None


def unreachable(address: str, error: Exception) -> Unavailable:
    return Unavailable(
        f"node {address} cannot be reached: {network_cause(error)}",
        fix=WRONG_PORT_FIX
        if speaks_no_tls(error)
        else "Check that the node is up and that its node-to-node port is open.",
    )


def broke_off(problem: Unavailable) -> bool:
    """The connection was open, and ended before the answer was here: the peer may have done what it was asked."""
    cause = problem.__cause__
    if isinstance(cause, aiohttp.ClientOSError):
        return cause.errno in (errno.ECONNRESET, errno.EPIPE) and not isinstance(cause, aiohttp.ClientConnectorError)
    return isinstance(cause, aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError)


async def read_in_time(request: web.Request, limit: int, what: str, within_s: float) -> bytes:
    """The body of a request; `what` names it. Raises TooLarge beyond `limit` bytes, BadRequest when it is not here in
    time: who holds back the rest holds a connection."""
    try:
        async with asyncio.timeout(within_s):
            return await read_bounded(request.content.iter_any(), limit, what)
    except TimeoutError:
        raise BadRequest(f"{what} did not arrive within {within_s:g} s", fix="Send it again.") from None


async def _problem(response: aiohttp.ClientResponse, address: str) -> Problem:
    body = await read_bounded(response.content.iter_any(), MAX_PROBLEM_BYTES, "the peer's problem")
    return problem_in(response.status, response.content_type, body, address)


def problem_in(status: int, content_type: str, body: bytes, address: str) -> Problem:
    """What a peer's answer other than 2xx says."""
    problem = decode_problem(body) if content_type == "application/problem+json" else None
    return problem or Unavailable(f"node {address} answered {status}")


def decode_problem(body: bytes) -> Problem | None:
    """None if it is not one."""
    try:
        return Problem.from_dict(msgspec.json.decode(body, type=dict[str, Any]))
    except msgspec.MsgspecError:
        return None
