"""The alive endpoint that services call, as in the paper: `PUT http://agent:5001/api/microservices`, form field `name`.

It listens on the gateway addresses of the container networks and nowhere else. A container speaks only for itself:
the request must come from an address of the instance that it names. It is answered at once, because services send it
inside a client's request, without a timeout.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog
from aiohttp import web

from protocol.problems import BadRequest, Forbidden, Problem, TooLarge, UnknownInstance

log = structlog.get_logger(__name__)

PATH = "/api/microservices"
MAX_BODY = 4096
BODY_S = 2.0

AddressesOf = Callable[[str], Awaitable[frozenset[str] | None]]
"""The addresses of an instance, or None if there is no such instance."""


def check_sender(addresses: frozenset[str] | None, sender: str | None) -> None:
    """Raises UnknownInstance, or Forbidden if the sender is not the instance."""
    if addresses is None:
        raise UnknownInstance("no instance of this name runs here", fix="Send the value of the environment's `name`.")
    if sender not in addresses:
        raise Forbidden("a service may only speak for itself", fix="Send the value of the environment's `name`.")


class AliveEndpoint:
    """`port` 0 (tests): any free port on each gateway."""

    def __init__(self, port: int, addresses_of: AddressesOf, on_alive: Callable[[str], None]) -> None:
        self._port = port
        self._addresses_of = addresses_of
        self._on_alive = on_alive
        self._sites: dict[str, web.TCPSite] = {}
        self._lock = asyncio.Lock()
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_put(PATH, self._receive)
        app.router.add_post(PATH, self._receive)
        self.runner = web.AppRunner(app, access_log=None, keepalive_timeout=30.0)

    async def listen_on(self, gateway: str) -> None:
        """Listen on one more gateway. An address that cannot be had is logged: services there are not heard."""
        async with self._lock:
            if gateway in self._sites:
                return
            site = web.TCPSite(self.runner, gateway, self._port)
            try:
                await site.start()
            except OSError as error:
                log.warning(
                    "alive-endpoint-unavailable",
                    address=f"{gateway}:{self._port}",
                    error=str(error),
                    fix="Free the port, or give this agent another alive_port.",
                )
                return
            self._sites[gateway] = site
            log.info("alive-endpoint", address=f"{gateway}:{self._port}")

    def port_on(self, gateway: str) -> int | None:
        """The port in use on a gateway, None if it is not listened on."""
        site = self._sites.get(gateway)
        if site is None or site._server is None:
            return None
        port: int = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        return port

    async def _receive(self, request: web.Request) -> web.Response:
        try:
            name = await _name_in(request)
            check_sender(await self._addresses_of(name), request.remote)
            self._on_alive(name)
        except Problem as problem:
            return web.json_response(problem.to_dict(), status=problem.status, content_type="application/problem+json")
        return web.json_response({"name": name})


async def _name_in(request: web.Request) -> str:
    try:
        async with asyncio.timeout(BODY_S):
            form = await request.post()
    except web.HTTPRequestEntityTooLarge:
        raise TooLarge(f"at most {MAX_BODY} bytes are read") from None
    except (TimeoutError, ValueError, LookupError, web.RequestPayloadError):  # LookupError: no such charset
        raise BadRequest("the body is not a form, or came too slowly") from None
    name = form.get("name")
    if not isinstance(name, str) or not name:
        raise BadRequest("the form field `name` is missing", fix="Send the value of the environment's `name`.")
    return name


@asynccontextmanager
async def running_alive_endpoint(
    port: int, addresses_of: AddressesOf, on_alive: Callable[[str], None]
) -> AsyncIterator[AliveEndpoint]:
    endpoint = AliveEndpoint(port, addresses_of, on_alive)
    await endpoint.runner.setup()
    try:
        yield endpoint
    finally:
        await endpoint.runner.cleanup()
