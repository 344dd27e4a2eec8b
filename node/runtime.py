"""A whole node, composed in one readable place.

`running_node` enters every part in order on one exit stack, so that leaving unwinds them in reverse: the agent lets
go of its link (containers stay up), the mDNS name is withdrawn, the listeners drain, then the rest closes.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aiohttp
import structlog

from agent.agent import Agent, AgentConfig, running_agent
from agent.docker.images import BuildSettings
from agent.docker.runtime import DockerConfig, running_docker
from agent.link import KnownControllers, Locator
from agent.runtime import Runtime
from agent.wasm.runtime import running_wasm
from bootstrap import (
    ENROL_PATHS,
    Contacts,
    Enroller,
    Identity,
    client_context,
    enrol_routes,
    mesh_mark,
    peer_identity,
    peer_until,
    server_context,
    use_renewed,
)
from client.lan import interface_addresses, is_near, own_networks
from csar import Limits, Parser
from dht.peer_connections import Lives, PeerConnector
from dht.peer_http import PeerHttp
from dht.records.directory import DirectoryConfig, NetworkDirectory, running_directory
from dht.records.set_client import SetClient
from dht.records.set_serving import set_routes
from dht.swarm.content_routes import content_routes
from dht.swarm.content_server import serving_content
from dht.swarm.exchange import ContentConfig, Exchange, running_content
from dht.tasks import OwnedTasks, running_loops
from node.ballast import disk_warning, keep_ballast, release_ballast
from node.config import DEFAULT_PEER_PORT, DEFAULT_REST_PORT, Network, NodeConfig
from node.connections import Connections, allowed
from node.discovery import ControllerBrowser, announced, lan_address, watched_for_namesakes
from node.door import Guest
from node.membership import Membership
from node.metrics import metrics_routes
from node.neighbours import met_neighbours
from node.page import page_routes
from node.ports import Ports, keep_ports, last_ports
from node.running import Running, shown, sole_node
from node.warnings import clock_warning, tell_warnings
from node.web import bind, members_only, serving
from protocol.peers import PeerIdentity
from protocol.problems import ConfigError, Problem
from protocol.service import Allowed
from region_controller import AliveBounds, Controller, ControllerConfig, client_routes, peer_routes, running_controller

log = structlog.get_logger(__name__)

WARM_PARSER_AFTER_S = 1.0


@dataclass(frozen=True)
class Node:
    """The parts of a running node; a role that it does not play is None."""

    config: NodeConfig
    running: Running
    directory: NetworkDirectory
    content: Exchange
    controller: Controller | None
    agent: Agent | None


@asynccontextmanager
async def running_node(config: NodeConfig, data_dir: Path) -> AsyncIterator[Node]:
    """A node with the roles of `config`, ready to serve. Raises ConfigError, PortTaken, Conflict."""
    identity = _checked(Identity.load(data_dir), config)
    async with AsyncExitStack() as stack:
        stack.enter_context(sole_node(data_dir))
        release_ballast(data_dir)
        parts = _Parts(stack, config, data_dir, identity)
        await parts.store()
        controller = await parts.controller() if "controller" in config.roles else None
        await parts.serve_peers(controller)
        if config.network.mdns:
            await parts.meet_neighbours()
        if controller is not None and config.network.mdns:
            await parts.announce()
        agent = await parts.agent() if "agent" in config.roles else None
        parts.keep_ports()
        running = Running(identity.node, os.getpid(), parts.rest, parts.peer, parts.dht)
        stack.enter_context(shown(data_dir, running))
        await stack.enter_async_context(running_loops({"keep-ballast": keep_ballast(data_dir)}))
        log.info("node-running", region=config.region, roles=config.roles, rest=parts.rest, peer=parts.peer)
        if controller is not None or agent is not None:
            tasks = await stack.enter_async_context(OwnedTasks())
            tasks.run(parts.warm_parser(), name="warm the parser")
        yield Node(config, running, parts.directory, parts.content, controller, agent)
        log.info("node-stopping", region=config.region)


class _Parts:
    """Enters one part after another on the node's exit stack, and holds what the later ones need of the earlier."""

    directory: NetworkDirectory
    content: Exchange
    rest: str = ""

    def __init__(self, stack: AsyncExitStack, config: NodeConfig, data_dir: Path, identity: Identity) -> None:
        self._stack = stack
        self._config = config
        self._data_dir = data_dir
        self._identity = identity
        self._host = config.network.host or lan_address()
        self._phones, self._peers = _connections(config.network), _connections(config.network)
        self._last = last_ports(data_dir)
        self._peer_socket = self._bound(config.network.peer_port, DEFAULT_PEER_PORT, self._last.peer)
        self.peer = _address(self._peer_socket)

    @property
    def dht(self) -> str:
        return f"{self._host}:{self.directory.udp_port}"

    async def store(self) -> None:
        """Records and content: what every node has, whatever its roles."""
        config, enter = self._config, self._stack.enter_async_context
        lives = Lives(lambda connection: min(self._membership.ends, peer_until(connection)))
        session = await enter(aiohttp.ClientSession(connector=PeerConnector(lives)))
        self._client_tls, self._server_tls = client_context(self._identity), server_context(self._identity)
        self._http = PeerHttp(session, self._client_tls, lives=lives)
        self.directory = await enter(
            running_directory(
                DirectoryConfig(
                    host=self._host,
                    port=_udp_port(self._host, config.network.dht_port, _port(self.peer)),
                    bootstrap=config.dht.bootstrap,
                    database=self._data_dir / "state.sqlite",
                    door=_port(self.peer),
                ),
                credentials=self._identity.credentials,
                keyring=self._identity.keyring,
                addresses=(self.peer, *config.network.advertise),
                whole_sets=SetClient(self._http),
            )
        )
        self.content = await enter(
            running_content(
                ContentConfig(
                    path=self._data_dir / "blobs",
                    quota_bytes=int(config.content.quota_gb * 1e9),
                    upload_mbit_s=config.content.upload_mbit_s,
                    max_uploads=config.content.max_uploads,
                ),
                directory=self.directory,
                http=self._http,
                near=partial(is_near, networks=own_networks(interface_addresses())),
            )
        )
        self._parser = await enter(Parser(_limits(self._max_archive_bytes)))
        self._membership = Membership(self._identity, self._use_renewed, directory=self.directory, http=self._http)

    async def warm_parser(self) -> None:
        """So that the first archive need not wait for the process that judges it. Not at once: who comes up is busy,
        and may be asked for what needs no archive."""
        await asyncio.sleep(WARM_PARSER_AFTER_S)
        await self._parser.warm_up()

    def _warnings(self) -> list[Problem]:
        """What an operator should know of this node now."""
        found = [
            self._membership.warning(time.time()),
            clock_warning(self._http.clocks.ahead(time.monotonic())),
            disk_warning(self._data_dir),
        ]
        return [problem for problem in found if problem is not None]

    async def controller(self) -> Controller:
        """The region's controller and its listener for phones."""
        rest_socket = self._bound(self._config.network.rest_port, DEFAULT_REST_PORT, self._last.rest)
        self.rest = f"http://{_address(rest_socket)}"
        controller = await self._stack.enter_async_context(
            running_controller(
                ControllerConfig(
                    region=self._config.region,
                    rest=self.rest,
                    database=self._data_dir / "controller.sqlite",
                    spool=self._data_dir / "spool",
                    max_archive_bytes=self._max_archive_bytes,
                    max_uploads=self._config.controller.max_uploads,
                    max_downloads=self._config.controller.max_downloads,
                    starts_per_client_s=self._config.controller.starts_per_client_s,
                    starts_burst=self._config.controller.starts_burst,
                    max_starts=self._config.controller.max_starts,
                    starts_per_agent=self._config.controller.starts_per_agent,
                    max_queued_starts=self._config.controller.max_queued_starts,
                    queue_wait_s=self._config.controller.queue_wait_s,
                    prefer_warm_within_s=self._config.controller.prefer_warm_within_ms / 1000,
                    allowed=Allowed(self._config.controller.allow_capabilities, self._config.controller.max_processes),
                    alive_bounds=AliveBounds(
                        self._config.controller.shortest_alive_s, self._config.controller.longest_alive_s
                    ),
                ),
                identity=self._identity.member,
                directory=self.directory,
                content=self.content,
                http=self._http,
                describe=self._parser.describe,
                publisher_key=self._identity.publisher_key,
                operator_token=self._identity.operator_token,
                warnings=self._warnings,
            )
        )
        routes = [
            *client_routes(controller),
            *metrics_routes(
                directory=self.directory,
                content=self.content,
                controller=controller,
                certificate_ends=lambda: self._membership.ends,
                listeners={"phones": self._phones, "peers": self._peers},
            ),
            *page_routes(self._config, self.rest),
        ]
        await self._stack.enter_async_context(serving(rest_socket, routes, connections=self._phones))
        return controller

    async def serve_peers(self, controller: Controller | None) -> None:
        """The listener for other nodes: content, enrolment, and what a controller says to its like."""
        enroller = Enroller(
            self._identity, data_dir=self._data_dir, contacts=self._contacts, region_holder=self._region_holder
        )
        routes = [*content_routes(self.content), *set_routes(self.directory.held_set), *enrol_routes(enroller)]
        if controller is not None:
            routes += peer_routes(controller)
        members = members_only(peer_identity, peer_until, open_paths=ENROL_PATHS)
        tls, enter = self._server_tls, self._stack.enter_async_context
        content = await enter(serving_content(self.content, _peer_of, tls=tls))
        await enter(
            serving(
                self._peer_socket,
                routes,
                middlewares=[members],
                tls=tls,
                take_content=content.take,
                connections=self._peers,
            )
        )
        if controller is not None:  # requests and links under way would hold the drain, and end without an answer
            self._stack.push_async_callback(controller.drain)
        await enter(
            running_loops({"renew-certificate": self._membership.keep(), "warn": tell_warnings(self._warnings)})
        )

    def _use_renewed(self, identity: Identity) -> None:
        for context in (self._client_tls, self._server_tls):
            use_renewed(context, identity)
        self.directory.use_credentials(identity.credentials)
        self.directory.use_keyring(identity.keyring)

    async def meet_neighbours(self) -> None:
        await self._stack.enter_async_context(
            met_neighbours(
                self.directory,
                host=self._host,
                dht_port=self.directory.udp_port,
                root=mesh_mark(self._identity.root),
                node=self._identity.node,
                site=self._config.site,
            )
        )

    async def announce(self) -> None:
        await self._stack.enter_async_context(
            announced(
                host=self._host,
                rest_port=_port(self.rest),
                peer_port=_port(self.peer),
                region=self._config.region,
                mesh=self._config.mesh,
                root=mesh_mark(self._identity.root),
                node=self._identity.node,
                site=self._config.site,
            )
        )
        await self._stack.enter_async_context(
            watched_for_namesakes(mesh=self._config.mesh, root=mesh_mark(self._identity.root), host=self._host)
        )

    async def agent(self) -> Agent:
        """The agent, with every runtime that this machine has."""
        settings = self._config.agent
        return await self._stack.enter_async_context(
            running_agent(
                AgentConfig(
                    host=self._host,
                    database=self._data_dir / "agent.sqlite",
                    memory_mb=settings.memory_mb or _half_of_memory_mb(),
                    alive_port=settings.alive_port,
                    labels=settings.labels,
                    allowed=Allowed(settings.docker.allow_capabilities, settings.docker.max_processes),
                    pause_after_s=settings.pause_after_s,
                    ready_timeout_s=settings.ready_timeout_s,
                    max_archive_bytes=self._max_archive_bytes,
                ),
                node=self._identity.node,
                mesh=self._config.mesh,
                region=self._config.region,
                runtimes=await self._runtimes(),
                content=self.content,
                # The bytes are what their digest promises by now: no need to read them once more.
                describe=partial(self._parser.describe, verify_contents=False),
                http=self._http,
                locator=await self._locator(),
            )
        )

    async def _runtimes(self) -> Sequence[Runtime]:
        found: list[Runtime] = []
        docker = self._config.agent.docker
        if docker.enabled:
            config = DockerConfig(
                url=docker.url or None,
                base_image_aliases=docker.base_image_aliases,
                sandboxes=docker.sandboxes,
                image_quota=int(docker.image_quota_gb * 10**9),
                subnets=docker.subnets,
                build=BuildSettings(
                    memory_mb=docker.build_memory_mb, network=docker.build_network, scratch=self._data_dir / "work"
                ),
            )
            docker_runtime = running_docker(
                config, self._identity.node, unpack=self._parser, pinned=self.content.pinned
            )
            found.append(await self._stack.enter_async_context(docker_runtime))
        if self._config.agent.wasm.enabled:
            wasm_runtime = running_wasm(self._data_dir / "wasm", self._parser.extract_file)
            found.append(await self._stack.enter_async_context(wasm_runtime))
        return found

    async def _locator(self) -> Locator:
        """How the agent finds its controller: the one it is told, the one in this process, or by mDNS."""
        known = self._config.agent.controller or (self.peer if self.rest else "")
        if known:
            return KnownControllers(known)
        browser = ControllerBrowser(
            mesh=self._config.mesh,
            root=mesh_mark(self._identity.root),
            region=self._config.region,
            interfaces=(self._host,),
        )
        return await self._stack.enter_async_context(browser)

    @property
    def _max_archive_bytes(self) -> int:
        return self._config.controller.max_archive_mb << 20

    def _contacts(self) -> Contacts:
        return Contacts(bootstrap=tuple(self.directory.contacts()), peers=(self.peer,))

    async def _region_holder(self, region: str) -> str | None:
        records = await self.directory.regions(f"region:{region}")
        return records[0].node if records else None

    def keep_ports(self) -> None:
        keep_ports(
            self._data_dir, Ports(rest=_port(self.rest) if self.rest else self._last.rest, peer=_port(self.peer))
        )

    def _bound(self, port: int | None, default: int, last: int) -> socket.socket:
        sock = bind(self._host, port, default, last=last)
        self._stack.callback(sock.close)
        return sock


def _checked(identity: Identity, config: NodeConfig) -> Identity:
    """Raises ConfigError if config.toml claims what the certificate does not grant."""
    member = identity.member
    for what, claimed, granted in (
        ("mesh", {config.mesh}, {member.mesh}),
        ("region", {config.region}, {member.region}),
        ("roles", set(config.roles), set(member.roles)),
    ):
        if not claimed <= granted:
            raise ConfigError(
                f"config.toml says {what} {', '.join(sorted(claimed))}; this machine was admitted with "
                f"{', '.join(sorted(granted))}",
                fix="Correct config.toml, or join again with an invitation for it.",
            )
    return identity


def _peer_of(sock: socket.socket) -> PeerIdentity | None:
    """The mesh member at the other end of an accepted connection."""
    return peer_identity(sock) if isinstance(sock, ssl.SSLSocket) else None


def _connections(network: Network) -> Connections[Guest]:
    """As many as configured, and as the process has files for."""
    total = allowed(network.max_connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    return Connections(total=total, of_one_address=network.max_connections_per_address)


def _limits(archive_bytes: int) -> Limits:
    """An archive may always unpack to twice its size: a site that allows large ones means it."""
    return Limits(archive_bytes=archive_bytes, unpacked_bytes=max(2 * archive_bytes, Limits().unpacked_bytes))


def _udp_port(host: str, named: int | None, preferred: int) -> int:
    """A UDP port that is free now: the named one, else the number of the TCP listener, else any."""
    with bind(host, named, preferred, kind=socket.SOCK_DGRAM) as probe:
        return int(probe.getsockname()[1])


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"{host}:{port}"


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def _half_of_memory_mb() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2_000_000
