"""The two HTTP listeners of a node and what wraps every handler: problems, peers, limits."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager

import msgspec
import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from dht.peer_http import PEER, PEER_UNTIL
from dht.swarm.content_wire import OPENING
from node.connections import Connections
from node.door import Content, Guest, door, guest_of
from protocol import tracing
from protocol.peers import PeerIdentity
from protocol.problems import BadRequest, KeyNeeded, MethodNotAllowed, NotFound, PortTaken, Problem, TooLarge
from protocol.tracing import current_header, step_of, within

log = structlog.get_logger(__name__)

MAX_BODY = 64 << 10
"""Bytes of a request body that is read whole; streamed uploads have limits of their own."""
DRAIN_S = 5.0
TAKEN_S = 60.0
"""A client that has not taken its answer by then may have to make room."""
CLIENT_GONE = 499
"""Nobody reads it: for the log."""
TRACE_RESPONSE = "traceresponse"
"""W3C Trace Context, level 2: how the caller finds this request in the logs."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
IdentifyPeer = Callable[[ssl.SSLObject | None], PeerIdentity | None]
PeerUntil = Callable[[ssl.SSLObject | None], float]


class _MalformedInOneLine(logging.Filter):
    """What does not speak HTTP is everyday on an open port: the HTTP library would log a traceback for each."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, HttpProcessingError):
            return True
        log.debug("request-malformed", why=error.message[:200])
        return False


_http_log = logging.getLogger("node.web.http")
_http_log.addFilter(_MalformedInOneLine())


def problem_response(problem: Problem) -> web.Response:
    """RFC 9457, with `Retry-After` where waiting helps."""
    headers = {}
    if problem.retry_after is not None:
        headers["Retry-After"] = str(max(1, round(problem.retry_after)))
    if isinstance(problem, KeyNeeded):
        headers["WWW-Authenticate"] = "Bearer"
    return web.Response(
        status=problem.status,
        body=msgspec.json.encode(problem.to_dict()),
        content_type="application/problem+json",
        headers=headers,
    )


@web.middleware
async def at_work(request: web.Request, handler: Handler) -> web.StreamResponse:
    """While it is answered, the connection does not make room for another."""
    guest = guest_of(request.transport)
    if guest is None:  # it has left already
        return await handler(request)
    guest.works()
    try:
        response = await handler(request)
        if isinstance(response, web.Response):  # else its handler has written it
            await _write(request, response, guest)
        return response
    finally:
        guest.waits()


async def _write(request: web.Request, response: web.Response, guest: Guest) -> None:
    """As the HTTP library does after the last middleware, when the connection would count as idle already: who takes
    its answer slowly is still being answered. But not for ever: silence must not keep others out."""
    too_long = asyncio.get_running_loop().call_later(TAKEN_S, guest.waits)
    try:
        with contextlib.suppress(ConnectionError):  # the library finds that out, too
            await response.prepare(request)
            await response.write_eof()
    finally:
        too_long.cancel()


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure leaves as a problem; an unforeseen one is logged once, with its trace, and told without it."""
    try:
        return await handler(request)
    except Problem as problem:
        return problem_response(problem)
    except ExceptionGroup as group:
        sole = _sole_problem(group)
        if sole is None:
            raise
        return problem_response(sole)
    except web.HTTPNotFound:
        return problem_response(NotFound(f"{request.path} is not served here", fix="See /openapi.json."))
    except web.HTTPRequestEntityTooLarge as error:
        return problem_response(TooLarge(error.text or f"at most {MAX_BODY} bytes"))
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        response = problem_response(
            MethodNotAllowed(f"{request.path} does not take {request.method}", fix=f"It takes {allowed}.")
        )
        response.headers["Allow"] = allowed
        return response
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _foreign(error)
    except web.RequestPayloadError as error:
        return problem_response(BadRequest(f"the body cannot be read: {error}"))
    except Exception as error:
        if isinstance(error, ConnectionError) and _client_gone(request):
            log.debug("client-gone", method=request.method, path=request.path)
            return web.Response(status=CLIENT_GONE)
        log.exception("unforeseen-failure", method=request.method, path=request.path)
        where = current_header().split("-")[1:2]
        return problem_response(
            Problem("This node met a fault of its own.", fix=f"Its log has the details: trace {''.join(where)}.")
        )


def _client_gone(request: web.Request) -> bool:
    """A handler's own calls may lose their connections, too: only the caller's counts."""
    return request.transport is None or request.transport.is_closing()


def _foreign(error: web.HTTPException) -> web.Response:
    """What the HTTP library refuses by itself: the status says it all (RFC 9457 section 4.2.1)."""
    body = {"type": "about:blank", "title": error.reason, "status": error.status, "detail": error.reason}
    return web.Response(status=error.status, body=msgspec.json.encode(body), content_type="application/problem+json")


def _sole_problem(group: ExceptionGroup[Exception]) -> Problem | None:
    """What a TaskGroup wrapped, if it is problems and nothing else."""
    first = group.exceptions[0]
    if group.split(Problem)[1] is not None:
        return None
    return _sole_problem(first) if isinstance(first, ExceptionGroup) else first if isinstance(first, Problem) else None


@web.middleware
async def traced(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What follows belongs to the caller's trace, or begins one; logs and calls of other nodes carry it on."""
    step = step_of(request.headers.get(tracing.HEADER, ""))
    with within(step), structlog.contextvars.bound_contextvars(trace=step.trace):
        response = await handler(request)
    if not response.prepared:
        response.headers[TRACE_RESPONSE] = step.header
    return response


@web.middleware
async def access_log(request: web.Request, handler: Handler) -> web.StreamResponse:
    started = time.perf_counter()
    response = await handler(request)
    log.debug(
        "http",
        method=request.method,
        path=request.path,
        status=response.status,
        ms=round((time.perf_counter() - started) * 1e3, 1),
    )
    return response


def members_only(
    identify: IdentifyPeer, until: PeerUntil, *, open_paths: Collection[str]
) -> Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]:
    """Only verified members of the mesh pass; the handler finds who it is in `request[PEER]`, and until when that is
    known in `request[PEER_UNTIL]`.

    `open_paths` answer without a certificate: a machine that joins has none yet.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        transport = request.transport
        tls = transport.get_extra_info("ssl_object") if transport else None
        peer = identify(tls)
        if peer is None and request.path not in open_paths:
            refusal = KeyNeeded("only members of the mesh may ask this", fix="Join with `cornerstore bootstrap join`.")
            response = problem_response(refusal)
            response.force_close()  # who renewed its certificate meanwhile shows it only over a new connection
            return response
        if peer is not None:
            request[PEER], request[PEER_UNTIL] = peer, until(tls)
            if guest := guest_of(transport):
                guest.is_member()
        return await handler(request)

    return check


def bind(
    host: str, port: int | None, default: int, *, last: int = 0, kind: socket.SocketKind = socket.SOCK_STREAM
) -> socket.socket:
    """A bound socket: the named port, or the default, or where that is taken the one it had `last`, or a free one.

    Raises PortTaken if a port that was asked for by name is in use, or the address is not of this machine.
    """
    for candidate in (port,) if port is not None else (default, last, 0):
        sock = socket.socket(socket.AF_INET, kind)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, candidate))
        except OSError as error:
            sock.close()
            if error.errno == errno.EADDRINUSE and port is None and candidate:
                continue
            raise PortTaken(
                f"{host}:{candidate} cannot be bound: {error.strerror}",
                fix="Name another port in config.toml under [network], or end the program that holds it."
                if error.errno == errno.EADDRINUSE
                else "Set `host` under [network] in config.toml to an address of this machine.",
            ) from None
        if kind == socket.SOCK_STREAM:
            sock.listen(512)  # at once: two bound sockets that do not listen yet may share a port
        sock.setblocking(False)
        return sock
    raise PortTaken(f"no free port on {host}")


@asynccontextmanager
async def serving(
    sock: socket.socket,
    routes: Sequence[web.RouteDef],
    *,
    middlewares: Sequence[object] = (),
    tls: ssl.SSLContext | None = None,
    take_content: Callable[[socket.socket], None] | None = None,
    connections: Connections[Guest] | None = None,
    drain_s: float = DRAIN_S,
) -> AsyncIterator[None]:
    """Serve `routes` on a bound socket for the time of the block; then drain for at most `drain_s`.

    `take_content`, if given, is handed the connections that ask for content instead (`node.door`). `connections` says
    how many may be open, and counts them.
    """
    app = web.Application(
        middlewares=[at_work, traced, access_log, problems, *middlewares],  # type: ignore[list-item]
        client_max_size=MAX_BODY,
    )
    app.add_routes(routes)
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=_http_log,
        handle_signals=False,
        shutdown_timeout=drain_s,
        keepalive_timeout=30,
        auto_decompress=False,  # a coded body is for a service behind us, or refused
    )
    await runner.setup()
    try:
        assert runner.server is not None
        content = Content(OPENING, take_content) if take_content else None
        known = Connections[Guest]() if connections is None else connections
        async with door(sock, runner.server, known, tls=tls, content=content):
            yield
    finally:
        await runner.cleanup()
