"""A client that needs no address: it finds a controller on its link, and another one when that dies."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self, TypeVar

import aiohttp
import msgspec
import structlog

from client.controller import ControllerClient
from client.discovery import Browser
from client.dnssd import FoundController
from client.invocation import invoke
from protocol.instances import InstanceView, OnProgress, StartAnswer, StartRequest
from protocol.problems import ControllerUnreachable, UnknownInstance

FIND_TIMEOUT_S = 3.0
MAX_CONTROLLERS_TRIED = 4
MAX_REMEMBERED = 256
"""Instances of which it is known who answered for them."""
ATTEMPTS = 2
"""At each of them: one broken connection is an accident, two are a reason to move on."""

T = TypeVar("T")
log = structlog.get_logger(__name__)


class Phone:
    """Calls go to one controller for as long as it answers, then to another of its mesh that mDNS shows, then to one of
    another mesh (a phone goes from site to site), then to `url`.

    `mesh` (a name), `root` (of a mesh, where several have one name) and `region` choose among several; `url` is the way
    where multicast is blocked (read from a QR code). What was started is another matter: a lease is known to the
    controller that gave it, and calls on it go there and nowhere else.
    """

    def __init__(
        self,
        *,
        url: str | None = None,
        mesh: str | None = None,
        root: str | None = None,
        region: str | None = None,
        interfaces: Sequence[str] | None = None,
        find_timeout_s: float = FIND_TIMEOUT_S,
    ) -> None:
        self._fallback = url
        self._browser = Browser(mesh=mesh, root=root, region=region, interfaces=interfaces)
        self._find_timeout_s = find_timeout_s
        self._chosen: FoundController | None = None
        self._started_at: OrderedDict[str, str] = OrderedDict()
        """By instance, the controller that gave the lease: its token is nobody else's business."""
        self._root: str | None = None
        """Of the mesh that answered last."""
        self._waited = False

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._session = await stack.enter_async_context(aiohttp.ClientSession())
            await stack.enter_async_context(self._browser)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def controller(self) -> FoundController | None:
        """The one that the last call went to; None before the first, and while the fallback URL is used."""
        return self._chosen

    @property
    def controllers(self) -> list[FoundController]:
        """Those that mDNS shows now."""
        return self._browser.controllers

    async def start(self, request: StartRequest, on_progress: OnProgress | None = None) -> StartAnswer:
        """As `ControllerClient.start`; if the controller dies over it, the next one is asked the same.

        It is one request for all of them: who has begun it, perhaps for the first one, does not begin it twice.
        """
        if request.request_key is None:
            request = msgspec.structs.replace(request, request_key=secrets.token_hex(16))

        async def start(client: ControllerClient) -> StartAnswer:
            answer = await client.start(request, on_progress)
            self._started_at[answer.instance] = client.url
            while len(self._started_at) > MAX_REMEMBERED:
                self._started_at.popitem(last=False)
            return answer

        return await self.call(start)

    async def invoke(self, answer: StartAnswer, path: str, body: bytes | None = None, *, accept: str = "*/*") -> bytes:
        """Call the service at its own address; no controller is needed for that.

        Where no network leads there, the controller that answered its start, and no other, passes a body on. Raises as
        `client.invocation.invoke`.
        """
        url = self._started_at.get(answer.instance)
        if url is None:
            return await invoke(self._session, answer, path, body, accept=accept)
        async with ControllerClient(url, session=self._session, attempts=ATTEMPTS) as client:
            return await client.invoke(answer, path, body, accept=accept)

    async def stop(self, answer: StartAnswer) -> InstanceView:
        return await self._on_lease(answer, lambda client: client.stop(answer.instance, answer.lease.token))

    async def restart(self, answer: StartAnswer) -> InstanceView:
        return await self._on_lease(answer, lambda client: client.restart(answer.instance, answer.lease.token))

    async def alive(self, answer: StartAnswer, *, alive_time: int | None = None) -> InstanceView:
        return await self._on_lease(
            answer, lambda client: client.alive(answer.instance, answer.lease.token, alive_time=alive_time)
        )

    async def _on_lease(
        self, answer: StartAnswer, work: Callable[[ControllerClient], Awaitable[InstanceView]]
    ) -> InstanceView:
        """With the controller that gave the lease. Raises ControllerUnreachable if that is gone."""
        url = self._started_at.get(answer.instance)
        if url is None:
            raise UnknownInstance(f"this phone did not start {answer.instance}", fix="Use the answer of its own start.")
        try:
            async with ControllerClient(url, session=self._session, attempts=ATTEMPTS) as client:
                return await work(client)
        except ControllerUnreachable as problem:
            fix = "Start the service again: whichever controller answers gives a new lease."
            raise ControllerUnreachable(problem.detail, fix=fix) from problem

    async def call(self, work: Callable[[ControllerClient], Awaitable[T]]) -> T:
        """`work` with a controller that answers. Raises ControllerUnreachable once nobody is left to ask."""
        for _ in range(MAX_CONTROLLERS_TRIED):
            self._chosen = await self._next()
            if self._chosen is None:
                break
            try:
                async with ControllerClient(self._chosen.url, session=self._session, attempts=ATTEMPTS) as client:
                    done = await work(client)
                    self._root = self._chosen.root
                    return done
            except ControllerUnreachable as problem:
                log.info("controller-lost", controller=self._chosen.url, cause=problem.detail)
                self._browser.forget(self._chosen)
        self._chosen = None
        if self._fallback is None:
            raise ControllerUnreachable(
                f"no controller on this network answered within {self._find_timeout_s:g} s",
                fix="Where multicast is blocked, give the URL that a controller's page shows.",
            )
        async with ControllerClient(self._fallback, session=self._session) as client:
            return await work(client)

    async def _next(self) -> FoundController | None:
        known = self._browser.controllers
        if self._chosen in known:
            return self._chosen
        found = known or await self._look()
        return min(found, key=lambda c: c.root != self._root, default=None)

    async def _look(self) -> list[FoundController]:
        """Where there is a URL to fall back on, only the first call waits: later ones find what was heard meanwhile."""
        if self._waited and self._fallback is not None:
            return self._browser.controllers
        self._waited = True
        return await self._browser.wait_until(bool, timeout_s=self._find_timeout_s)
