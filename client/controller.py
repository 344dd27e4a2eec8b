"""The REST interface of a region controller, typed (DESIGN: `/v1`)."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec

from client.invocation import invoke, only_posts, relayed
from client.listing import Listing, listed
from client.rest import Rest, retried
from client.sse import EventParser
from client.transfer import DEFAULT_MAX_BYTES, blocks_of, record_headers, save_verified, size_of
from protocol.decisions import PlacementView
from protocol.events import NEWS, News
from protocol.identifiers import check_digest
from protocol.instances import (
    RELAY_S,
    RESTART_S,
    AgentView,
    Brought,
    Category,
    Health,
    InstanceLog,
    InstanceView,
    OnProgress,
    Progress,
    RegionView,
    ServiceView,
    StartAnswer,
    StartRequest,
)
from protocol.problems import BadRequest, ControllerUnreachable, Problem, ServiceError, ServiceUnreachable

DEFAULT_ATTEMPTS = 3
GRACE_S = 10.0
"""How much longer than the work it asked for a client waits for the answer."""
COMMAND_TIMEOUT_S = RESTART_S + 3 * RELAY_S
TRANSFER_TIMEOUT_S = 3600.0
EVENTS_SILENT_S = 30.0
"""A controller that has nothing to tell says so every 10 s."""

T = TypeVar("T")


class ControllerClient:
    """One controller. Every call raises the controller's own Problem, or ControllerUnreachable if it is away.

    `token`: an operator's; calls on an instance take its lease token instead. Calls that may safely be repeated are,
    up to `attempts` times, while the controller cannot be reached. A `session` that is handed in stays open.
    """

    def __init__(
        self,
        url: str,
        *,
        session: aiohttp.ClientSession | None = None,
        token: str | None = None,
        attempts: int = DEFAULT_ATTEMPTS,
    ) -> None:
        self._url = url
        self._token = token
        self._attempts = attempts
        self._session = session
        self._owned: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        if self._session is None:
            self._owned = self._session = aiohttp.ClientSession()
        self._rest = Rest(self._url, self._session, self._token)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._owned is not None:
            await self._owned.close()

    @property
    def url(self) -> str:
        return self._rest.url

    @property
    def operator(self) -> bool:
        """Whether calls without a lease token carry an operator's."""
        return self._token is not None

    async def _listed(
        self, path: str, kind: type[T], query: Sequence[tuple[str, str]] = (), at_most: int | None = None
    ) -> Listing[T]:
        return await listed(self._rest, path, kind, query, at_most=at_most, attempts=self._attempts)

    async def _retried(self, call: Callable[[], Awaitable[T]]) -> T:
        return await retried(call, self._attempts)

    # --- instances ---------------------------------------------------------------------------------------------------

    async def start(self, request: StartRequest, on_progress: OnProgress | None = None) -> StartAnswer:
        """Start the service or find it warm. With `on_progress`, each step is told as it happens.

        The request gets a `request_key` if it has none, so that repeating it after a broken connection is harmless.
        """
        if request.request_key is None:
            request = msgspec.structs.replace(request, request_key=secrets.token_hex(16))
        return await self._retried(lambda: self._start(request, on_progress))

    async def _start(self, request: StartRequest, on_progress: OnProgress | None) -> StartAnswer:
        headers = {"Content-Type": "application/json"}
        if on_progress is not None:
            headers["Accept"] = "text/event-stream"
        async with self._rest.request(
            "POST",
            "/instances",
            data=_json_without_defaults(request),
            headers=headers,
            timeout_s=request.wait_s + GRACE_S,
            works=True,
        ) as response:
            if response.content_type != "text/event-stream":
                return self._rest.decode(await self._rest.body(response), StartAnswer)
            return await self._follow(response, StartAnswer, on_progress)

    async def _follow(self, response: aiohttp.ClientResponse, kind: type[T], on_progress: OnProgress | None) -> T:
        """Tells each step; returns the result."""
        parser = EventParser()
        async for piece in response.content.iter_any():
            for event in parser.feed(piece):
                if event.name == "progress" and on_progress is not None:
                    on_progress(self._rest.decode(event.data, Progress))
                elif event.name == "result":
                    return self._rest.decode(event.data, kind)
                elif event.name == "problem":
                    raise Problem.from_dict(self._rest.decode(event.data, dict[str, Any]))
        raise ControllerUnreachable(
            f"the controller at {self.url} ended its answer early", fix="Ask again: a repeated request is the same one."
        )

    async def instances(self) -> list[InstanceView]:
        return (await self._listed("/instances", InstanceView)).items

    async def instance(self, instance: str) -> InstanceView:
        return await self._retried(lambda: self._rest.call("GET", f"/instances/{_segment(instance)}", InstanceView))

    async def log(self, instance: str, token: str | None = None, *, lines: int = 100) -> InstanceLog:
        """What it wrote last. Needs its lease token, or an operator's."""
        path = f"/instances/{_segment(instance)}/log"
        params = {"lines": str(lines)}
        return await self._retried(lambda: self._rest.call("GET", path, InstanceLog, token=token, params=params))

    async def stop(self, instance: str, token: str | None = None) -> InstanceView:
        """Stop without removing: it can be restarted at the same address."""
        return await self._command(instance, "stop", token)

    async def restart(self, instance: str, token: str | None = None) -> InstanceView:
        return await self._command(instance, "restart", token)

    async def alive(self, instance: str, token: str | None = None, *, alive_time: int | None = None) -> InstanceView:
        """Let it live `alive_time` seconds from now (None: its own alive time, 0: until stopped)."""
        body = {} if alive_time is None else {"alive_time": alive_time}
        return await self._command(instance, "alive", token, json=body)

    async def remove(self, instance: str, token: str | None = None) -> InstanceView:
        return await self._act("DELETE", f"/instances/{_segment(instance)}", token)

    async def _command(self, instance: str, verb: str, token: str | None, **kwargs: Any) -> InstanceView:
        return await self._act("POST", f"/instances/{_segment(instance)}/{verb}", token, **kwargs)

    async def _act(self, method: str, path: str, token: str | None, **kwargs: Any) -> InstanceView:
        return await self._retried(
            lambda: self._rest.call(
                method, path, InstanceView, token=token, timeout_s=COMMAND_TIMEOUT_S, works=True, **kwargs
            )
        )

    async def invoke(
        self,
        answer: StartAnswer,
        path: str,
        body: bytes | None = None,
        *,
        method: str | None = None,
        content_type: str = "application/octet-stream",
        accept: str = "*/*",
        timeout_s: float = 60.0,
    ) -> bytes:
        """Call the service at its own address; see `client.invocation.invoke`.

        Where no network leads there (it may have been handed off to another site), a POST goes through the controller:
        at once if the controller said so (`reach`), else when no connection could be opened.
        """
        assert self._session is not None
        options: dict[str, Any] = {"content_type": content_type, "accept": accept, "timeout_s": timeout_s}
        if answer.reach == "relay":
            if body is None or method not in (None, "POST"):
                raise only_posts(answer)
            return await self.relayed(answer, path, body, **options)
        try:
            return await invoke(self._session, answer, path, body, method=method, **options)
        except ServiceUnreachable as problem:
            if body is None or method not in (None, "POST"):
                raise
            try:
                return await self.relayed(answer, path, body, **options)
            except ServiceError:
                raise
            except Problem as second:
                raise problem from second

    async def relayed(
        self,
        answer: StartAnswer,
        path: str,
        body: bytes,
        *,
        content_type: str = "application/octet-stream",
        accept: str = "*/*",
        timeout_s: float = 60.0,
    ) -> bytes:
        """POST to the service through the controller, whatever the service's own address; at most 64 MiB."""
        return await relayed(
            self._rest, answer, path, body, content_type=content_type, accept=accept, timeout_s=timeout_s
        )

    # --- services ----------------------------------------------------------------------------------------------------

    async def services(
        self,
        *,
        category: str | None = None,
        input: str | Sequence[str] = (),
        output: str | Sequence[str] = (),
        id: str | None = None,
        q: str | None = None,
        at_most: int | None = None,
    ) -> Listing[ServiceView]:
        """The first `at_most` (None: all) published services that fit every condition given, and how many do.

        `category` includes what lies below it. Of publishers that the controller knows first, then newest first.
        """
        query = [(k, v) for k, v in (("category", category), ("id", id), ("q", q)) if v is not None]
        query += [("input", name) for name in _names(input)] + [("output", name) for name in _names(output)]
        return await self._listed("/services", ServiceView, query, at_most)

    async def service(self, digest: str) -> ServiceView:
        return await self._retried(lambda: self._rest.call("GET", f"/services/{check_digest(digest)}", ServiceView))

    async def publish(
        self, path: Path, envelope: bytes | None = None, on_progress: OnProgress | None = None
    ) -> ServiceView:
        """Upload a CSAR, which the controller keeps and announces. `envelope`: the publisher's signed record."""

        async def upload() -> ServiceView:
            size = await asyncio.to_thread(size_of, path)
            headers = {
                "Content-Type": "application/zip",
                "Content-Length": str(size),
                **record_headers(envelope),
            }
            return await self._rest.call(
                "POST",
                "/services",
                ServiceView,
                data=blocks_of(path, on_progress),
                headers=headers,
                timeout_s=TRANSFER_TIMEOUT_S,
                works=True,
            )

        return await self._retried(upload)

    async def withdraw(self, digest: str, envelope: bytes | None = None) -> ServiceView:
        """Take a service off the mesh. `envelope`: the publisher's tombstone."""
        path = f"/services/{check_digest(digest)}"
        return await self._retried(
            lambda: self._rest.call("DELETE", path, ServiceView, headers=record_headers(envelope))
        )

    async def fetch(
        self,
        digest: str,
        out: Path,
        on_progress: OnProgress | None = None,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        timeout_s: float = TRANSFER_TIMEOUT_S,
    ) -> int:
        """Download content to `out`, verified; returns its size in bytes. Raises CorruptContent, DiskFull, TooLarge.

        With `on_progress`, the controller first tells how it comes through the mesh to itself: bytes and peers.
        """
        path = f"/content/{check_digest(digest)}"

        async def bring() -> None:
            events = {"Accept": "text/event-stream"}
            async with self._rest.request("GET", path, timeout_s=timeout_s, works=True, headers=events) as response:
                await self._follow(response, Brought, on_progress)

        async def download() -> int:
            if on_progress is not None:
                await bring()
            async with self._rest.request("GET", path, timeout_s=timeout_s, works=True) as response:
                return await save_verified(response, digest, out, max_bytes=max_bytes, on_progress=on_progress)

        return await self._retried(download)

    async def events(self) -> AsyncIterator[News]:
        """What happens in the region: a Snapshot, then each change, until the controller ends the stream.

        Raises ControllerUnreachable if it is silent for EVENTS_SILENT_S.
        """
        timeout_s = EVENTS_SILENT_S
        async with self._rest.request("GET", "/events", timeout_s=None, idle_s=timeout_s) as response:
            parser = EventParser()
            async for piece in response.content.iter_any():
                for event in parser.feed(piece):
                    if (kind := NEWS.get(event.name)) is not None:  # a newer controller may tell more
                        yield self._rest.decode(event.data, kind)

    # --- the region --------------------------------------------------------------------------------------------------

    async def categories(self, category: str = "/") -> Category:
        """The tree of `category`."""
        params = {"category": category}
        return await self._retried(lambda: self._rest.call("GET", "/categories", Category, params=params))

    async def agents(self) -> list[AgentView]:
        return (await self._listed("/agents", AgentView)).items

    async def regions(self) -> list[RegionView]:
        return (await self._listed("/regions", RegionView)).items

    async def placements(self) -> list[PlacementView]:
        """What became of the latest requests for services, and why; the latest first."""
        return await self._retried(lambda: self._rest.call("GET", "/placements", list[PlacementView]))

    async def would_be_placed(self, service: str) -> PlacementView:
        """Where the service (an id, a name or a digest) would be placed now. Starts nothing."""
        path = f"/placements/{quote(service, safe='')}"
        return await self._retried(lambda: self._rest.call("GET", path, PlacementView))

    async def health(self) -> Health:
        """Not repeated: it asks whether the controller is there now."""
        return await self._rest.call("GET", "/healthz", Health, timeout_s=5.0)


def _segment(instance: str) -> str:
    """One path segment; refuses what would change the path."""
    if not instance or len(instance) > 128 or not instance.replace("-", "").replace("_", "").isalnum():
        raise BadRequest(f"{instance[:80]!r} is not an instance id", fix="List them with `cornerstore ps`.")
    return instance


def _names(value: str | Sequence[str]) -> Sequence[str]:
    return (value,) if isinstance(value, str) else value


def _json_without_defaults(request: StartRequest) -> bytes:
    defaults = StartRequest()
    given = {f: getattr(request, f) for f in request.__struct_fields__ if getattr(request, f) != getattr(defaults, f)}
    return msgspec.json.encode(given)
