"""Members of the mesh on this network: every node shows itself by mDNS, and looks for the others.

    <node id>._cornerstore-n._udp.local.    SRV  <site>-<node[:8]>.local. <UDP port of the DHT>
                                            TXT  txtvers=1 root= node=

In a large mesh two machines of one site need not be in each other's routing tables. Met in this way, they ask each
other when nobody nearer to a key answers: a site whose uplink is cut goes on as one. An announcement is a hint: it
costs one ping, and counts only if the node then proves its id and membership.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import structlog
from zeroconf import Error as ZeroconfError
from zeroconf import IPVersion, NonUniqueNameException, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo

from client.discovery import RESOLVE_TIMEOUT_MS, open_zeroconf
from client.dnssd import TXT_VERSION, host_name
from dht.tasks import OwnedTasks
from protocol.identifiers import is_node_id
from protocol.problems import ConfigError, Conflict

SERVICE_TYPE = "_cornerstore-n._udp.local."
MAX_RESOLVING = 64
"""Announcements looked into at once; others are left out, so that a flood of forged ones costs no more than this."""

log = structlog.get_logger(__name__)


class Acquaintance(Protocol):
    """What hears of neighbours: `dht.NetworkDirectory`."""

    def meet(self, node: str, address: str) -> None: ...

    def part(self, node: str) -> None: ...


@asynccontextmanager
async def met_neighbours(
    directory: Acquaintance, *, host: str, dht_port: int, root: str, node: str, site: str
) -> AsyncIterator[None]:
    """Show this node on the interface of `host`, and introduce the others of its mesh, for the time of the block.

    `root`: the mark of the mesh's root certificate (`bootstrap.mesh_mark`). Raises ConfigError if `host` cannot be used
    for multicast, Conflict if another node of this identity is there.
    """
    info = AsyncServiceInfo(
        SERVICE_TYPE,
        f"{node}.{SERVICE_TYPE}",
        port=dht_port,
        parsed_addresses=[host],
        server=host_name(site=site, node=node),
        properties={"txtvers": TXT_VERSION, "root": root, "node": node},
    )
    zeroconf = open_zeroconf([host])
    try:
        async with OwnedTasks() as tasks:
            lookout = _Lookout(directory, tasks, root=root, own=node)
            try:
                announcements = await zeroconf.async_register_service(info)
            except NonUniqueNameException:
                raise Conflict(
                    f"another node of this identity ({node[:8]}) shows itself on this network",
                    fix="Two nodes must not run from copies of one data directory: end the other one, or give this "
                    "machine an identity of its own with `cornerstore bootstrap join`.",
                ) from None
            except ZeroconfError as error:
                raise ConfigError(
                    f"this node cannot be announced: {str(error) or type(error).__name__}",
                    fix="Set `mdns = false` under [network].",
                ) from error
            browser = AsyncServiceBrowser(zeroconf.zeroconf, SERVICE_TYPE, handlers=[lookout.on_change])
            try:
                yield
            finally:
                await browser.async_cancel()
                await announcements
                await (await zeroconf.async_unregister_service(info))
    finally:
        await zeroconf.async_close()


class _Lookout:
    def __init__(self, directory: Acquaintance, tasks: OwnedTasks, *, root: str, own: str) -> None:
        self._directory = directory
        self._tasks = tasks
        self._root = root
        self._own = own
        self._resolving: set[str] = set()

    def on_change(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        node = name.removesuffix(f".{SERVICE_TYPE}")
        if node == self._own or not is_node_id(node):
            return
        if state_change is ServiceStateChange.Removed:
            self._directory.part(node)
        elif node not in self._resolving and len(self._resolving) < MAX_RESOLVING:
            self._resolving.add(node)
            self._tasks.run(self._resolve(zeroconf, name, node), name="resolve a neighbour")

    async def _resolve(self, zeroconf: Zeroconf, name: str, node: str) -> None:
        try:
            info = AsyncServiceInfo(SERVICE_TYPE, name)
            known = await info.async_request(zeroconf, RESOLVE_TIMEOUT_MS)
            address = neighbour_address(
                info.port, info.parsed_addresses(IPVersion.V4Only) if known else (), info.properties, root=self._root
            )
        except ZeroconfError as error:
            log.info("neighbour-ignored", name=name[:80], error=str(error))
            return
        finally:
            self._resolving.discard(node)
        if address is not None:
            self._directory.meet(node, address)


def neighbour_address(
    port: int | None, addresses: Sequence[str], properties: Mapping[bytes, bytes | None], *, root: str
) -> str | None:
    """Where a neighbour of the mesh with that root is to be asked; None for another mesh, and for nonsense."""
    ours = properties.get(b"root") == root.encode() and properties.get(b"txtvers") == TXT_VERSION.encode()
    return f"{addresses[0]}:{port}" if ours and addresses and port else None
