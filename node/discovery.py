"""mDNS on the node's side: a controller is announced, agents find the controller of their region."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

import structlog
from zeroconf import Error as ZeroconfError
from zeroconf.asyncio import AsyncServiceInfo

from client.discovery import Browser, open_zeroconf
from client.dnssd import SERVICE_TYPE, FoundController, host_name, instance_name, txt_properties
from client.lan import lan_address
from dht.tasks import OwnedTasks
from protocol.identifiers import parent_region
from protocol.problems import ConfigError

__all__ = ["ControllerBrowser", "Namesakes", "announced", "lan_address", "nearest_controllers", "watched_for_namesakes"]

SETTLE_S = 1.5
"""After browsing began. Answers are spread over 0.1 s, and a record that was multicast just now is not repeated within
1 s (RFC 6762 section 6): an ancestor's answer may come long before the one of our own region."""
PATIENCE_S = 2.0
"""How long `locate` waits, once settled, for any controller that would do."""

log = structlog.get_logger(__name__)


@asynccontextmanager
async def announced(
    *, host: str, rest_port: int, peer_port: int, region: str, mesh: str, root: str, node: str, site: str
) -> AsyncIterator[str]:
    """Announce a controller on the interface of `host` (an IPv4 address of this machine) for the time of the block.

    Yields the instance name. Says goodbye at the end. `root`: see `FoundController`. Raises ConfigError if `host`
    cannot be used for multicast.
    """
    info = AsyncServiceInfo(
        SERVICE_TYPE,
        instance_name(site=site, region=region, node=node),
        port=rest_port,
        parsed_addresses=[host],
        server=host_name(site=site, node=node),
        properties=txt_properties(region=region, mesh=mesh, root=root, node=node, peer_port=peer_port),
    )
    zeroconf = open_zeroconf([host])
    try:
        try:
            announcements = await zeroconf.async_register_service(info, allow_name_change=True)
        except ZeroconfError as error:
            raise ConfigError(
                f"this controller cannot be announced: {str(error) or type(error).__name__}",
                fix="Shorten `site` in config.toml, or set `mdns = false` under [network].",
            ) from error
        log.info("controller-announced", name=info.name, host=host, port=rest_port)
        try:
            yield info.name
        finally:
            await announcements
            await (await zeroconf.async_unregister_service(info))
    finally:
        await zeroconf.async_close()


class Namesakes:
    """Other meshes of our name on this link: allowed, but people should know, as they go by the name."""

    def __init__(self, *, mesh: str, root: str) -> None:
        self._mesh = mesh
        self._known = {root}

    def new(self, found: Iterable[FoundController]) -> list[FoundController]:
        """One controller of each such mesh that was not seen before."""
        seen = []
        for controller in found:
            if controller.mesh == self._mesh and controller.root not in self._known:
                self._known.add(controller.root)
                seen.append(controller)
        return seen

    def warn(self, found: Iterable[FoundController]) -> None:
        """Once for each."""
        for controller in self.new(found):
            log.warning(
                "another-mesh-of-this-name",
                mesh=controller.mesh,
                its_root=controller.root,
                its_controller=controller.url,
                fix="Nothing is mixed up. If it was meant to be one mesh, join with an invitation instead of `init`.",
            )


@asynccontextmanager
async def watched_for_namesakes(*, mesh: str, root: str, host: str) -> AsyncIterator[None]:
    """Warn of other meshes of this name for the time of the block."""
    namesakes = Namesakes(mesh=mesh, root=root)

    async def watch(browser: Browser) -> None:
        async for change in browser:
            namesakes.warn([change.controller])

    async with Browser(mesh=mesh, interfaces=[host]) as browser, OwnedTasks() as tasks:
        tasks.run(watch(browser), name="watch for namesakes")
        yield


def nearest_controllers(found: Sequence[FoundController], *, root: str, region: str) -> list[FoundController]:
    """Controllers of the mesh with that root in `region`; else those of its nearest ancestor that has any."""
    ours = [c for c in found if c.root == root]
    while region:
        here = [c for c in ours if c.region == region]
        if here:
            return here
        region = parent_region(region)
    return []


class ControllerBrowser:
    """Where an agent finds its controller: node-to-node addresses (host:port), kept current in the background."""

    def __init__(self, *, mesh: str, root: str, region: str, interfaces: Sequence[str] | None = None) -> None:
        self._root = root
        self._region = region
        self._namesakes = Namesakes(mesh=mesh, root=root)
        self._browser = Browser(mesh=mesh, interfaces=interfaces)

    async def __aenter__(self) -> Self:
        await self._browser.__aenter__()
        self._settled_at = asyncio.get_running_loop().time() + SETTLE_S
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._browser.__aexit__(kind, error, traceback)

    async def locate(self) -> Sequence[str]:
        """Addresses to dial, best first; empty if no controller shows itself within `PATIENCE_S`."""
        settling_s = max(0.0, self._settled_at - asyncio.get_running_loop().time())
        found = await self._browser.wait_until(self._have_own_region, timeout_s=settling_s)
        if not self._nearest(found):
            found = await self._browser.wait_until(lambda now: bool(self._nearest(now)), timeout_s=PATIENCE_S)
        self._namesakes.warn(found)
        return [c.peer_address for c in self._nearest(found)]

    def failed(self, address: str) -> None:
        """Nobody answers at `address`: drop it until it announces itself again or answers a query."""
        for controller in self._browser.controllers:
            if controller.peer_address == address:
                self._browser.forget(controller)

    def _have_own_region(self, found: Sequence[FoundController]) -> bool:
        return any(c.region == self._region for c in self._nearest(found))

    def _nearest(self, found: Sequence[FoundController]) -> list[FoundController]:
        return nearest_controllers(found, root=self._root, region=self._region)
