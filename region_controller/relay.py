"""Calls of a service through its controller: `POST /v1/instances/{id}/invoke`.

For clients that cannot open the service's own address: a page in a browser (another origin, and services know nothing
of CORS), a phone whose network does not route to the agent. Everybody else calls the service itself.

The controller dials only what an agent of the mesh reported, and only for who holds a lease. What comes back is written
by a stranger, and is served from the controller's own origin: so it carries headers that keep a browser from running
it, and no others of the service than its media type.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import structlog
from aiohttp import web
from yarl import URL

from protocol.instances import RELAYED_HEADER
from protocol.network_errors import network_cause
from protocol.problems import BadRequest, DeadlineExceeded, Problem, ServiceError, TooLarge, Unavailable
from region_controller.operations import Caller, Operations
from region_controller.spool import Slots

log = structlog.get_logger(__name__)

MAX_SENT = 64 << 20
MAX_REPLY = 64 << 20
"""Bytes in each direction."""
MAX_CALLS = 64
"""Under way at once."""
CONNECT_S = 5.0
STALLED_S = 30.0
"""Of silence by the client."""
CALL_S = 300.0

_HARMLESS = {
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Content-Disposition": "attachment",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_PATH = re.compile(r"/[!$-;=?-Z_a-z~]{0,1023}")
"""Printable, already percent-encoded, without fragment."""


class Relay:
    def __init__(self, operations: Operations, session: aiohttp.ClientSession) -> None:
        self._operations = operations
        self._session = session
        self._slots = Slots(MAX_CALLS, "calls of services")

    async def serve(self, request: web.Request, instance: str, caller: Caller) -> web.StreamResponse:
        """The service's answer, whatever its status.

        Raises UnknownInstance, KeyNeeded, Forbidden, Conflict, BadRequest, TooLarge, TooManyRequests; Unavailable if
        nobody listens, ServiceError for what is no answer, DeadlineExceeded.
        """
        path = _path(request)
        length = _length(request)
        with self._slots.one():
            url = URL(await self._operations.reached_at(instance, caller) + path, encoded=True)
            headers = {
                "Content-Length": str(length),  # many services read no chunked bodies
                "Content-Type": request.headers.get("Content-Type", "application/octet-stream"),
                "Accept": request.headers.get("Accept", "*/*"),
                "Accept-Encoding": "identity",
            }
            async with self._called(url, headers, request) as reply:
                return await _pass_on(request, reply, instance)

    @asynccontextmanager
    async def _called(
        self, url: URL, headers: dict[str, str], request: web.Request
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        timeout = aiohttp.ClientTimeout(total=CALL_S, sock_connect=CONNECT_S)
        try:
            async with self._session.post(
                url, data=_body(request), headers=headers, timeout=timeout, allow_redirects=False
            ) as reply:
                if 300 <= reply.status < 400:
                    raise ServiceError(
                        f"the service at {url} answered with a redirect", fix="Call the path that it names."
                    )
                yield reply
        except aiohttp.ConnectionTimeoutError:
            raise Unavailable(f"the service at {url} cannot be reached: no connection within {CONNECT_S:g} s") from None
        except TimeoutError:
            raise DeadlineExceeded(f"the service at {url} did not reply within {CALL_S:g} s") from None
        except aiohttp.ClientError as error:
            if isinstance(error.__cause__, Problem):  # of the body, which the library reads for us
                raise error.__cause__ from None
            raise Unavailable(
                f"the service at {url} cannot be reached: {network_cause(error)}", fix="Start the service again."
            ) from error


async def _pass_on(request: web.Request, reply: aiohttp.ClientResponse, instance: str) -> web.StreamResponse:
    headers = {**_HARMLESS, RELAYED_HEADER: instance, "Content-Type": reply.headers.get("Content-Type", "text/plain")}
    if reply.content_length is not None:
        _check_size(reply.content_length)
        headers["Content-Length"] = str(reply.content_length)
    response = web.StreamResponse(status=reply.status, headers=headers)
    await response.prepare(request)
    try:
        passed = 0
        async for part in reply.content.iter_any():
            passed += len(part)
            _check_size(passed)
            async with asyncio.timeout(STALLED_S):
                await response.write(part)
        await response.write_eof()
    except (TooLarge, TimeoutError, aiohttp.ClientError) as error:
        # The status is out: only a connection that breaks tells the client that this is not all.
        log.info("relay-broke-off", instance=instance, cause=str(error) or type(error).__name__)
        if request.transport is not None:
            request.transport.abort()
    return response


def _check_size(size: int) -> None:
    if size > MAX_REPLY:
        raise TooLarge(f"the service's answer has more than {MAX_REPLY} bytes", fix="Call the service itself.")


async def _body(request: web.Request) -> AsyncIterator[bytes]:
    while True:
        try:
            async with asyncio.timeout(STALLED_S):
                part = await request.content.readany()
        except TimeoutError:
            raise BadRequest(f"the call sent nothing for {STALLED_S:g} s", fix="Send it again.") from None
        if not part:
            return
        yield part


def _path(request: web.Request) -> str:
    path = request.query.get("path", "/")
    if not _PATH.fullmatch(path):
        raise BadRequest(
            f"{path[:80]!r} is not a path", fix="It begins with a slash, is percent-encoded, and has no fragment."
        )
    return path


def _length(request: web.Request) -> int:
    if request.content_length is None:
        raise BadRequest("the call has no Content-Length", fix="Send the size of the body in bytes.")
    if request.content_length > MAX_SENT:
        raise TooLarge(
            f"the call has {request.content_length} bytes, and the limit is {MAX_SENT}", fix="Call the service itself."
        )
    return request.content_length
