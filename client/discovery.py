"""Finding the controllers on this link by mDNS (DESIGN: discovery). The format is in `client.dnssd`.

A browser hears a controller come within about 0.1 s and hears a clean goodbye at once. One that dies without a
goodbye stays in caches for long: whoever fails to reach it says so with `Browser.forget`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Literal, Self

import structlog
from msgspec import Struct
from zeroconf import Error as ZeroconfError
from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from client.dnssd import SERVICE_TYPE, FoundController, read_announcement
from client.lan import choose_browsing_addresses, interface_addresses
from protocol.problems import ConfigError

__all__ = ["Browser", "Change", "FoundController", "discover", "open_zeroconf"]

MAX_CONTROLLERS = 256
"""Announcements kept at once: a flood of forged ones costs no more than this."""
RESOLVE_TIMEOUT_MS = 3000
ASK_AGAIN_S = 5.0
"""How long after `forget` the link is asked afresh, in case the controller was only slow."""

log = structlog.get_logger(__name__)


class Change(Struct, frozen=True):
    """A controller `appeared` (or changed), or is `gone`."""

    kind: Literal["appeared", "gone"]
    controller: FoundController


class Browser:
    """The controllers on this link, kept current until the block is left.

    `mesh` (a name), `root` (of a mesh, see `FoundController`) and `region` keep only matching controllers;
    `interfaces` are local IPv4 addresses (default: all but those of container bridges). Iterating yields each `Change`
    from now on; one reader at a time.
    """

    def __init__(
        self,
        *,
        mesh: str | None = None,
        root: str | None = None,
        region: str | None = None,
        interfaces: Sequence[str] | None = None,
    ) -> None:
        self._mesh = mesh
        self._root = root
        self._region = region
        self._interfaces = interfaces
        self._found: dict[str, FoundController] = {}
        self._changes: asyncio.Queue[Change] = asyncio.Queue(maxsize=4 * MAX_CONTROLLERS)
        self._news = asyncio.Event()
        self._resolving: dict[str, asyncio.Task[None]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        interfaces = self._interfaces or choose_browsing_addresses(interface_addresses())
        self._zeroconf = open_zeroconf(interfaces)
        self._browser = self._browse()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        tasks = [*self._resolving.values(), *([self._asking] if self._asking else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._browser.async_cancel()
        await self._zeroconf.async_close()

    @property
    def controllers(self) -> list[FoundController]:
        """Those known now, by region and name."""
        return sorted(self._found.values(), key=lambda c: (c.region, c.name))

    async def __aiter__(self) -> AsyncIterator[Change]:
        while True:
            yield await self._changes.get()

    async def wait_until(
        self, condition: Callable[[list[FoundController]], bool], *, timeout_s: float
    ) -> list[FoundController]:
        """Those known as soon as `condition` holds for them, or after `timeout_s` however that stands."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not condition(self.controllers):
                    self._news.clear()
                    await self._news.wait()
        return self.controllers

    def forget(self, controller: FoundController) -> None:
        """Drop a controller that does not answer. It comes back as soon as it announces itself or answers a query."""
        cache = self._zeroconf.zeroconf.cache
        cache.async_remove_records(
            [r for r in cache.async_entries_with_name(SERVICE_TYPE) if getattr(r, "alias", None) == controller.name]
        )
        cache.async_remove_records(list(cache.async_entries_with_name(controller.name)))
        self._drop(controller.name)
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_again())

    async def _ask_again(self) -> None:
        await asyncio.sleep(ASK_AGAIN_S)
        await self._browser.async_cancel()
        self._browser = self._browse()

    def _browse(self) -> AsyncServiceBrowser:
        return AsyncServiceBrowser(self._zeroconf.zeroconf, SERVICE_TYPE, handlers=[self._on_change])

    def _on_change(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is ServiceStateChange.Removed:
            self._drop(name)
        elif name not in self._resolving and len(self._resolving) + len(self._found) < MAX_CONTROLLERS:
            task = asyncio.create_task(self._resolve(zeroconf, name))
            self._resolving[name] = task

    async def _resolve(self, zeroconf: Zeroconf, name: str) -> None:
        try:
            info = AsyncServiceInfo(SERVICE_TYPE, name)
            if not await info.async_request(zeroconf, RESOLVE_TIMEOUT_MS):
                return
            controller = read_announcement(
                name,
                port=info.port,
                addresses=info.parsed_addresses(IPVersion.V4Only),
                properties=info.properties,
            )
        except ZeroconfError as error:
            log.info("announcement-ignored", name=name[:80], error=str(error))
            return
        finally:
            if self._resolving.get(name) is asyncio.current_task():
                del self._resolving[name]
        if controller is None:
            log.info("announcement-ignored", name=name[:80])
        elif self._wanted(controller) and self._found.get(name) != controller:
            self._found[name] = controller
            self._note(Change("appeared", controller))

    def _wanted(self, controller: FoundController) -> bool:
        wanted = ((self._mesh, controller.mesh), (self._root, controller.root), (self._region, controller.region))
        return all(asked in (None, has) for asked, has in wanted)

    def _drop(self, name: str) -> None:
        resolving = self._resolving.pop(name, None)
        if resolving is not None:
            resolving.cancel()
        controller = self._found.pop(name, None)
        if controller is not None:
            self._note(Change("gone", controller))

    def _note(self, change: Change) -> None:
        if self._changes.full():
            self._changes.get_nowait()
        self._changes.put_nowait(change)
        self._news.set()


async def discover(
    *,
    timeout_s: float = 3.0,
    mesh: str | None = None,
    region: str | None = None,
    interfaces: Sequence[str] | None = None,
    enough: int = MAX_CONTROLLERS,
) -> list[FoundController]:
    """The controllers that answer within `timeout_s`; returns sooner once there are `enough`.

    Raises ConfigError if this machine has no network interface to ask on.
    """
    async with Browser(mesh=mesh, region=region, interfaces=interfaces) as browser:
        return await browser.wait_until(lambda found: len(found) >= enough, timeout_s=timeout_s)


def open_zeroconf(interfaces: Sequence[str]) -> AsyncZeroconf:
    """IPv4 multicast on these local addresses. Raises ConfigError if they cannot be used."""
    try:
        return AsyncZeroconf(interfaces=list(interfaces), ip_version=IPVersion.V4Only)
    except OSError as error:
        raise ConfigError(
            f"multicast cannot be used on {', '.join(interfaces)}: {error}",
            fix="Check that the address belongs to this machine, or name a controller with --controller URL.",
        ) from error
