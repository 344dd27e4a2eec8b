"""HTTP to one controller: bounded time and size, answers validated, problems turned back into exceptions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import aiohttp
import msgspec
import stamina

from protocol import tracing
from protocol.bounded import read_bounded
from protocol.instances import RELAYED_HEADER
from protocol.network_errors import network_cause
from protocol.problems import ConfigError, ControllerUnreachable, DeadlineExceeded, Problem
from protocol.tracing import current_header

CONNECT_TIMEOUT_S = 3.0
CALL_TIMEOUT_S = 10.0
MAX_ANSWER_BYTES = 16 << 20
UNREACHABLE_FIX = "Find controllers with `cornerstore discover`, or name one with --controller URL."

T = TypeVar("T")


class Rest:
    """Calls below `<url>/v1`. Raises ControllerUnreachable if nobody answers, else the controller's own Problem."""

    def __init__(self, url: str, session: aiohttp.ClientSession, token: str | None) -> None:
        self.url = base_url(url)
        self._session = session
        self._token = token

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        *,
        timeout_s: float | None,
        idle_s: float | None = None,
        token: str | None = None,
        works: bool = False,
        relays: bool = False,
        **kwargs: Any,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer with a 2xx status.

        `timeout_s` None: it may take for ever, but be silent for `idle_s` only. `works`: silence for `timeout_s` means
        slow work (DeadlineExceeded), not a dead controller. `relays`: what comes is a service's own answer,
        of any status, or the controller's problem.
        """
        headers = dict(kwargs.pop("headers", {}))
        if bearer := token or self._token:
            headers["Authorization"] = f"Bearer {bearer}"
        if trace := current_header():
            headers[tracing.HEADER] = trace
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_read=idle_s, sock_connect=CONNECT_TIMEOUT_S)
        try:
            async with self._session.request(
                method, f"{self.url}/v1{path}", headers=headers, timeout=timeout, allow_redirects=False, **kwargs
            ) as response:
                if not (RELAYED_HEADER in response.headers if relays else 200 <= response.status < 300):
                    raise await self._problem(response)
                yield response
        except aiohttp.ConnectionTimeoutError:
            raise self._unreachable(f"no connection within {CONNECT_TIMEOUT_S:g} s") from None
        except TimeoutError:
            if works:
                raise DeadlineExceeded(
                    f"the controller at {self.url} was not done after {timeout_s:g} s",
                    fix="Ask again, or allow more time.",
                ) from None
            raise self._unreachable(f"no answer within {timeout_s or idle_s:g} s") from None
        except aiohttp.ServerDisconnectedError as error:
            raise self._unreachable("it closed the connection without an answer") from error
        except aiohttp.ClientResponseError as error:
            raise self._unreachable("what listens there does not speak HTTP") from error
        except (aiohttp.ClientError, OSError, UnicodeError) as error:
            raise self._unreachable(network_cause(error)) from error

    async def call(
        self, method: str, path: str, answer: type[T], *, timeout_s: float = CALL_TIMEOUT_S, **kwargs: Any
    ) -> T:
        """The decoded body of the answer."""
        async with self.request(method, path, timeout_s=timeout_s, **kwargs) as response:
            return self.decode(await self.body(response), answer)

    async def body(self, response: aiohttp.ClientResponse) -> bytes:
        """The whole body. Raises TooLarge beyond MAX_ANSWER_BYTES."""
        return await read_bounded(response.content.iter_any(), MAX_ANSWER_BYTES, "the answer")

    def decode(self, body: bytes, answer: type[T]) -> T:
        """Raises ControllerUnreachable if the body is not what a controller answers."""
        try:
            return msgspec.json.decode(body, type=answer)
        except msgspec.MsgspecError as error:
            raise self._unreachable(f"the answer is not a controller's: {error}") from None

    async def _problem(self, response: aiohttp.ClientResponse) -> Problem:
        if response.content_type == "application/problem+json":
            return Problem.from_dict(self.decode(await self.body(response), dict[str, Any]))
        return self._unreachable(f"the answer {response.status} is not a controller's")

    def _unreachable(self, cause: str) -> ControllerUnreachable:
        return ControllerUnreachable(f"the controller at {self.url} cannot be used: {cause}", fix=UNREACHABLE_FIX)


def base_url(url: str) -> str:
    """`http://host:port` of what a person typed: scheme added, `/v1` and the final slash dropped.

    Raises ConfigError for anything that is not an HTTP URL.
    """
    text = url if "://" in url else f"http://{url}"
    text = text.rstrip("/").removesuffix("/v1").rstrip("/")
    scheme, _, rest = text.partition("://")
    if scheme not in ("http", "https") or not rest or any(c.isspace() for c in rest):
        raise ConfigError(f"{url[:80]!r} is not the URL of a controller", fix="It reads http://10.1.0.10:7400.")
    return text


async def retried(call: Callable[[], Awaitable[T]], attempts: int) -> T:
    """Repeat an idempotent call for a moment while its controller cannot be reached."""
    caller = stamina.AsyncRetryingCaller(attempts=attempts, timeout=None, wait_initial=0.1, wait_max=1.0)
    return await caller(ControllerUnreachable, call)
