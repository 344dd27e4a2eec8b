"""Bridge networks of services.

A service without groups joins the agent's own bridge, `cs-<node>`, on which containers cannot talk to each other.
A TOSCA group becomes the bridge `csn-<node>-<name>` that its members on this agent share; an `internal` one has no way
out. Docker keeps bridges apart from each other.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import docker.errors
import structlog
from docker.types import IPAMConfig, IPAMPool
from msgspec import Struct

from agent.docker.engine import Api, DockerEngine
from protocol.problems import StartFailed
from protocol.service import BridgeNetwork

log = structlog.get_logger(__name__)

ROUTES = Path("/proc/net/route")
OWNER_LABEL = "cornerstore.network"
"""Its value is the node that made the network."""

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,50}")
_ICC = "com.docker.network.bridge.enable_icc"


class Bridge(Struct, frozen=True):
    """A network that is there; `gateway` is this host's address on it."""

    name: str
    gateway: str


class DockerNetworks:
    def __init__(self, engine: DockerEngine, node: str, *, subnets: Sequence[str]) -> None:
        self._engine = engine
        self._node = node
        self._own = f"cs-{node[:8]}"
        self._pools = tuple(ipaddress.IPv4Network(subnet) for subnet in subnets)
        self._known: dict[str, Bridge] = {}
        self.lock = asyncio.Lock()
        """Held while a network is made or removed, and from there until the container that wants it exists."""

    async def ensure(self, groups: Sequence[BridgeNetwork]) -> tuple[Bridge, ...]:
        """The networks that a service of these groups joins, in order. Raises StartFailed."""
        if not groups:
            return (await self.own(),)
        return tuple([await self._ensure(group_name(self._node, group), group) for group in groups])

    async def own(self) -> Bridge:
        """The agent's own bridge. Raises StartFailed."""
        return await self._ensure(self._own, None)

    def forget(self) -> None:
        """Someone may have removed networks: look again."""
        self._known.clear()

    def gateway(self, name: str) -> str:
        """This host's address on a network seen before; empty if it is unknown."""
        bridge = self._known.get(name)
        return bridge.gateway if bridge is not None else ""

    async def learn(self, names: Sequence[str]) -> None:
        """Look up the gateways of networks that containers of before are on."""
        for name in names:
            if name not in self._known:
                try:
                    self._known[name] = _bridge(await self._engine.call(partial(_inspect, name=name)))
                except docker.errors.NotFound:
                    continue

    async def drop_unused(self, names: Sequence[str]) -> None:
        """Remove group networks that no container wants any more, stopped ones included."""
        for name in names:
            if name == self._own:
                continue
            async with self.lock:
                self._known.pop(name, None)
                await self._engine.call(partial(_remove_if_unused, name=name))

    async def drop_abandoned(self) -> None:
        """Remove what a killed agent of this node made and nobody joined. What this process made is left alone: a
        container for it may be on its way."""
        filters = {"label": f"{OWNER_LABEL}={self._node}"}
        listed = await self._engine.call(lambda api: api.networks(filters=filters))
        await self.drop_unused([str(network["Name"]) for network in listed if network["Name"] not in self._known])

    async def drop_own(self) -> None:
        """Remove the agent's own bridge if no container is on it: an engine has room for some thirty networks."""
        async with self.lock:
            self._known.pop(self._own, None)
            await self._engine.call(partial(_remove_if_unused, name=self._own))

    async def _ensure(self, name: str, group: BridgeNetwork | None) -> Bridge:
        if name in self._known:
            return self._known[name]
        try:
            found = await self._engine.call(lambda api: _find_or_create(api, name, group, self._pools, self._node))
        except docker.errors.APIError as error:
            raise StartFailed(
                f"the network {name} cannot be made: {error.explanation}",
                fix="Choose a subnet that this machine does not use, or leave it out.",
                reason="network",
                log=[],
            ) from error
        if group is not None and bool(found.get("Internal")) != group.internal:
            raise StartFailed(
                f"the network {name} is here already with internal: {str(not group.internal).lower()}",
                fix="Give the group a name of its own.",
                reason="network",
                log=[],
            )
        self._known[name] = _bridge(found)
        return self._known[name]


def group_name(node: str, group: BridgeNetwork) -> str:
    """`csn-<node>-<name>`; a name that Docker would refuse is replaced by its hash.

    The node is in it because each agent listens for alive messages on the gateways of its own networks.
    """
    plain = group.name if _PLAIN.fullmatch(group.name) else hashlib.sha256(group.name.encode()).hexdigest()[:16]
    return f"csn-{node[:8]}-{plain}"


def admissible(subnet: str, pools: Sequence[ipaddress.IPv4Network], taken: Sequence[ipaddress.IPv4Network]) -> bool:
    """Whether a stated subnet may be used: a route to it would otherwise take the machine off its own networks."""
    wanted = ipaddress.IPv4Network(subnet, strict=False)
    return any(wanted.subnet_of(pool) for pool in pools) and not any(wanted.overlaps(other) for other in taken)


def routed_networks(table: str) -> list[ipaddress.IPv4Network]:
    """The destinations of `/proc/net/route`, the default route left out. Addresses there are little-endian hex."""
    networks = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        destination, mask = (int.from_bytes(bytes.fromhex(fields[i]), "little") for i in (1, 7))
        if mask:
            networks.append(ipaddress.IPv4Network((destination, mask.bit_count())))
    return networks


def _inspect(api: Api, name: str) -> dict[str, object]:
    found: dict[str, object] = api.inspect_network(name)
    return found


def _find_or_create(
    api: Api, name: str, group: BridgeNetwork | None, pools: Sequence[ipaddress.IPv4Network], node: str
) -> dict[str, object]:
    try:
        return _inspect(api, name)
    except docker.errors.NotFound:
        api.create_network(
            name,
            driver="bridge",
            internal=group is not None and group.internal,
            ipam=_addressing(group, pools),
            options={_ICC: "true" if group is not None else "false"},
            labels={OWNER_LABEL: node},
            check_duplicate=True,
        )
        return _inspect(api, name)


def _addressing(group: BridgeNetwork | None, pools: Sequence[ipaddress.IPv4Network]) -> IPAMConfig | None:
    """A stated subnet is a wish: where it cannot be had, Docker chooses.

    The gateway is stated, because Docker does not tell one that it chose inside a stated subnet.
    """
    if group is None or group.subnet is None:
        return None
    if not admissible(group.subnet, pools, routed_networks(ROUTES.read_text())):
        log.warning("subnet-not-used", group=group.name, subnet=group.subnet, fix="See `subnets` in config.toml.")
        return None
    subnet = ipaddress.ip_network(group.subnet, strict=False)
    return IPAMConfig(pool_configs=[IPAMPool(subnet=str(subnet), gateway=str(subnet[1]))])


def _bridge(network: dict[str, object]) -> Bridge:
    addressing = network["IPAM"]
    assert isinstance(addressing, dict)
    gateway = next((str(c["Gateway"]) for c in addressing["Config"] if c.get("Gateway")), "")
    return Bridge(str(network["Name"]), gateway.partition("/")[0])


def _remove_if_unused(api: Api, name: str) -> None:
    try:
        labels = api.inspect_network(name).get("Labels") or {}
        if OWNER_LABEL in labels and not api.containers(all=True, filters={"network": name}):
            api.remove_network(name)
    except docker.errors.APIError as error:
        if error.status_code not in {403, 404}:  # in use again, or gone already
            raise
