"""Calls of a service through its controller: `POST /v1/instances/{id}/invoke`.

For clients that cannot open the service's own address: a page in a browser (another origin, and services know nothing
of CORS), a phone whose network does not route to the agent. Everybody else calls the service itself.

The controller dials only what an agent of the mesh reported, and only for who holds a lease. What comes back is written
by a stranger, and is served from the controller's own origin: so it carries headers that keep a browser from running
it, and no others of the service than its media type and coding. Likewise for the request: what is not named here,
above all what concerns one connection only (RFC 9110 section 7.6.1), ends at the controller.

A coded body (gzip) passes as it is: the bounds count what travels, and who unpacks it bounds that.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from urllib.parse import urlencode

import aiohttp
import structlog
from aiohttp import web
from yarl import URL

from dht.peer_http import PeerHttp
from protocol.instances import RELAY_S, RELAYED_HEADER
from protocol.network_errors import network_cause
from protocol.problems import BadRequest, DeadlineExceeded, Problem, ServiceError, TooLarge, Unavailable
from region_controller.handoff import on_behalf
from region_controller.leases import Held
from region_controller.operations import Caller, Operations, Reached
from region_controller.reachability import Door, Doors
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
_CODINGS = re.compile(r"[A-Za-z0-9.!#$%&'*+^_`|~-]{1,32}(?:[ \t]*,[ \t]*[A-Za-z0-9.!#$%&'*+^_`|~-]{1,32}){0,3}")
"""Of a `Content-Encoding`: up to four, in the order in which they were applied (RFC 9110 section 8.4)."""
_PATH = re.compile(r"/[!$-;=?-Z_a-z~]{0,1023}")
"""Printable, already percent-encoded, without fragment."""


class Relay:
    def __init__(self, operations: Operations, doors: Doors, session: aiohttp.ClientSession, peers: PeerHttp) -> None:
        self._operations = operations
        self._doors = doors
        self._session = session
        self._peers = peers
        self._slots = Slots(MAX_CALLS, "calls of services")

    async def serve(self, request: web.Request, instance: str, caller: Caller) -> web.StreamResponse:
        """The service's answer, whatever its status.

        Raises UnknownInstance, KeyNeeded, Forbidden, Conflict, BadRequest, TooLarge, TooManyRequests; Unavailable if
        nobody listens, ServiceError for what is no answer, DeadlineExceeded.
        """
        path = _path(request)
        length = _length(request)
        with self._slots.one():
            reached = await self._operations.reached_at(instance, caller)
            headers = {
                "Content-Length": str(length),  # many services read no chunked bodies
                "Content-Type": request.headers.get("Content-Type", "application/octet-stream"),
                "Accept": request.headers.get("Accept", "*/*"),
                "Accept-Encoding": request.headers.get("Accept-Encoding", "identity"),
                **_coding(request),
            }
            async with await self._way(reached, path, headers, request, caller) as reply:
                return await _pass_on(request, reply, instance)

    async def _way(
        self, reached: Reached, path: str, headers: dict[str, str], request: web.Request, caller: Caller
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        url = URL(reached.url + path, encoded=True)
        held = reached.held
        if held is None or await self._doors.look(held.controller, url.host or "", url.port or 80) is Door.OPEN:
            return self._called(url, headers, request)
        return self._called_there(held, path, headers | on_behalf(caller.token, operator=caller.operator), request)

    @asynccontextmanager
    async def _called_there(
        self, held: Held, path: str, headers: dict[str, str], request: web.Request
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Through the controller that took the instance, which is in its network."""
        try:
            async with self._peers.request(
                "POST",
                held.address,
                f"/peer/instances/{held.instance}/invoke?{urlencode({'path': path})}",
                timeout_s=CALL_S + RELAY_S,
                passed_on=RELAYED_HEADER,
                headers=headers,
                data=_body(request),
            ) as reply:
                yield reply
        except Unavailable as problem:
            raise _of_the_body(problem.__cause__) or problem from None

    @asynccontextmanager
    async def _called(
        self, url: URL, headers: dict[str, str], request: web.Request
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        timeout = aiohttp.ClientTimeout(total=CALL_S, sock_connect=CONNECT_S)
        try:
            async with self._session.post(
                url,
                data=_body(request),
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
                auto_decompress=False,
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
            if problem := _of_the_body(error):
                raise problem from None
            raise Unavailable(
                f"the service at {url} cannot be reached: {network_cause(error)}", fix="Start the service again."
            ) from error


def _of_the_body(error: BaseException | None) -> Problem | None:
    """What ended the client's own body, which the library reads for us."""
    return cause if error is not None and isinstance(cause := error.__cause__, Problem) else None


async def _pass_on(request: web.Request, reply: aiohttp.ClientResponse, instance: str) -> web.StreamResponse:
    headers = {
        **_HARMLESS,
        RELAYED_HEADER: instance,
        "Content-Type": reply.headers.get("Content-Type", "text/plain"),
        **_coding_of_reply(reply),
    }
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


def _coding(request: web.Request) -> dict[str, str]:
    """Raises BadRequest for what is none."""
    coding = request.headers.get("Content-Encoding", "identity")
    if _CODINGS.fullmatch(coding) is None:
        raise BadRequest(f"{coding[:80]!r} is no content coding", fix="Send the body as it is, or with gzip.")
    return {} if coding == "identity" else {"Content-Encoding": coding}


def _coding_of_reply(reply: aiohttp.ClientResponse) -> dict[str, str]:
    """Raises ServiceError for what is none: without it, nobody could read the body."""
    coding = reply.headers.get("Content-Encoding", "identity")
    if _CODINGS.fullmatch(coding) is None:
        raise ServiceError(
            f"the service at {reply.url} names {coding[:80]!r} as the coding of its answer", fix="Mend the service."
        )
    return {} if coding == "identity" else {"Content-Encoding": coding}


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
