"""Waiting network sandboxes: half of a container's start is its network, so a few are set up ahead of time.

A sandbox is a container that runs `pause_program` on the agent's own bridge. A service's container joins its network
namespace (`network_mode=container:<id>`) and is started in half the time; address, host alias `agent` and isolation are
those of the sandbox, the same that the service would have had itself.

- Each is used by one instance and never again. It stays with a stopped instance, which so restarts as fast, and goes
  when the instance is removed.
- Without one (none waiting, an unknown processor, groups, UDP ports) a service gets a network of its own.
- It costs about 3 MB while it waits: a shim process of the engine, nearly all of it.
- After `kill -9` of the agent: those that a service joined are found by that service, others are removed.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import docker.errors
import structlog
from docker.types import LogConfig
from msgspec import Struct

from agent.docker.containers import MIN_MEMORY, NODE_LABEL, SANDBOX_LABEL, joined_sandbox, node_prefix
from agent.docker.engine import Api, DockerEngine
from agent.docker.networks import Bridge, DockerNetworks
from agent.docker.pause_program import PATH, pause_layer
from agent.runtime import Attachment
from dht.tasks import OwnedTasks
from protocol.problems import Problem

log = structlog.get_logger(__name__)

REPOSITORY = "cornerstore/sandbox"
REFILL_AFTER_S = 1.0
"""After one was taken: the service that joined it shall have the processor for its own start."""

NOBODY = "65534:65534"


class Sandbox(Struct, frozen=True):
    """`id` is the container's; `address` is on `bridge`."""

    id: str
    bridge: Bridge
    address: str

    @property
    def attachment(self) -> Attachment:
        return Attachment(self.bridge.name, self.address, self.bridge.gateway)


class DockerSandboxes:
    """`size`: how many wait; 0: none, each service sets up a network of its own."""

    def __init__(
        self, engine: DockerEngine, networks: DockerNetworks, node: str, *, size: int, tasks: OwnedTasks
    ) -> None:
        self._engine = engine
        self._networks = networks
        self._node = node
        self._size = size
        self._tasks = tasks
        self._image: str | None = None
        self._waiting: list[Sandbox] = []
        self._making: set[str] = set()
        self._of: dict[str, str] = {}
        self._running: dict[str, Sandbox] = {}
        self._refilling: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def take(self, instance: str) -> Sandbox | None:
        """One for this instance, if any waits. Another is made soon."""
        if not self._waiting:
            self.refill_soon()
            return None
        sandbox = self._waiting.pop(0)
        self._of[instance] = sandbox.id
        self.refill_soon(REFILL_AFTER_S)
        return sandbox

    def refill_soon(self, after_s: float = 0.0) -> None:
        if self._size and (self._refilling is None or self._refilling.done()):
            self._refilling = self._tasks.run(self._refill(after_s), name="refill sandboxes")

    async def lookup(self, identifier: str) -> Sandbox | None:
        """A sandbox by its container's id; None if it does not run (any more)."""
        if identifier not in self._running:
            try:
                inspection = await self._engine.call(lambda api: api.inspect_container(identifier))
            except docker.errors.NotFound:
                return None
            if not inspection["State"]["Running"]:
                return None
            own = await self._networks.own()
            self._running[identifier] = _sandbox(inspection, own)
        return self._running[identifier]

    async def release(self, instance: str) -> None:
        """Remove the sandbox that the instance took, if it took one."""
        identifier = self._of.pop(instance, None)
        if identifier is not None:
            await self._remove(identifier)

    def ended(self, identifier: str) -> str | None:
        """A container of ours ended. Returns the instance that lost its network thereby, if one did."""
        self._running.pop(identifier, None)
        if any(sandbox.id == identifier for sandbox in self._waiting):
            self._waiting = [sandbox for sandbox in self._waiting if sandbox.id != identifier]
            self._tasks.run(self._remove(identifier), name="remove dead sandbox")
            self.refill_soon(REFILL_AFTER_S)
        return next((instance for instance, its in self._of.items() if its == identifier), None)

    async def adopt(self, listed: Sequence[Mapping[str, Any]], instances: Mapping[str, str]) -> None:
        """Of the node's containers, keep the sandboxes that services joined and those that wait; remove others.

        `instances`: the instances that joined a sandbox, with the sandbox's id.
        """
        self._running.clear()
        self._of |= instances
        up = {container["Id"] for container in listed if container["State"] == "running"}
        self._waiting = [sandbox for sandbox in self._waiting if sandbox.id in up]
        kept = {*self._of.values(), *(sandbox.id for sandbox in self._waiting)}
        for container in listed:
            names = {name.removeprefix("/") for name in container["Names"]}
            if SANDBOX_LABEL in container["Labels"] and container["Id"] not in kept and not names & self._making:
                await self._remove(container["Id"])

    async def close(self) -> None:
        """Remove those that wait; what services use stays with them."""
        self._size = 0
        if self._refilling is not None:
            self._refilling.cancel()
            await asyncio.gather(self._refilling, return_exceptions=True)
        waiting, self._waiting = self._waiting, []
        await asyncio.gather(*(self._remove(sandbox.id) for sandbox in waiting))

    async def _refill(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        while len(self._waiting) < self._size:
            try:
                sandbox = await self._make()
            except (Problem, docker.errors.APIError) as error:
                self._image = None  # it may be what is missing
                log.warning("no-sandbox", error=str(error), fix="Services start with a network of their own, slower.")
                return
            if sandbox is None:
                return
            self._waiting.append(sandbox)

    async def _make(self) -> Sandbox | None:
        """None if this processor's program is not known."""
        image = await self._ensure_image()
        if image is None:
            return None
        name = f"{node_prefix(self._node)}-net-{os.urandom(6).hex()}"
        self._making.add(name)
        try:
            async with self._networks.lock:
                bridge = await self._networks.own()
                await self._engine.call(lambda api: self._create(api, name, image, bridge))
            inspection = await self._engine.call(lambda api: _start(api, name))
            sandbox = _sandbox(inspection, bridge)
            self._running[sandbox.id] = sandbox
            return sandbox
        except (docker.errors.APIError, asyncio.CancelledError):
            self._networks.forget()
            await self._remove(name)
            raise
        finally:
            self._making.discard(name)

    async def _ensure_image(self) -> str | None:
        if self._image is None:
            architecture = str((await self._engine.call(lambda api: api.version()))["Arch"])
            layer = pause_layer(architecture)
            if layer is None:
                log.info("no-sandbox-program", architecture=architecture)
                self._size = 0
                return None
            self._image = await self._engine.call(lambda api: _imported(api, layer))
        return self._image

    def _create(self, api: Api, name: str, image: str, bridge: Bridge) -> None:
        host = api.create_host_config(
            network_mode=bridge.name,
            extra_hosts={"agent": bridge.gateway} if bridge.gateway else {},
            mem_limit=MIN_MEMORY,
            memswap_limit=MIN_MEMORY,
            pids_limit=8,  # the engine's own threads at the start count
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true"],
            read_only=True,
            log_config=LogConfig(type="none"),
        )
        labels = {NODE_LABEL: self._node, SANDBOX_LABEL: "network"}
        api.create_container(image, name=name, user=NOBODY, labels=labels, host_config=host)

    async def _remove(self, container: str) -> None:
        self._running.pop(container, None)
        try:
            await self._engine.call(lambda api: api.remove_container(container, force=True, v=True))
        except docker.errors.APIError as error:
            if error.status_code not in {404, 409}:  # gone already, or just going
                log.warning("sandbox-kept", sandbox=container, error=str(error))
        except Problem as problem:
            log.debug("sandbox-kept", sandbox=container, detail=problem.detail)


def joined(listed: Sequence[Mapping[str, Any]], instance_label: str) -> dict[str, str]:
    """Of containers as the engine lists them: each instance that joined a sandbox, with the sandbox's id."""
    found = {}
    for container in listed:
        instance, sandbox = container["Labels"].get(instance_label), joined_sandbox(container)
        if instance and sandbox is not None:
            found[instance] = sandbox
    return found


def _start(api: Api, name: str) -> dict[str, Any]:
    api.start(name)
    inspection: dict[str, Any] = api.inspect_container(name)
    return inspection


def _sandbox(inspection: Mapping[str, Any], bridge: Bridge) -> Sandbox:
    networks = inspection["NetworkSettings"]["Networks"]
    address = next((str(network["IPAddress"]) for network in networks.values() if network["IPAddress"]), "")
    return Sandbox(inspection["Id"], bridge, address)


def _imported(api: Api, layer: bytes) -> str:
    """The sandbox's image, made of one layer unless it is here. Its name says what is in it."""
    tag = hashlib.sha256(layer).hexdigest()[:16]
    name = f"{REPOSITORY}:{tag}"
    try:
        api.inspect_image(name)
    except docker.errors.NotFound:
        changes = [f'ENTRYPOINT ["{PATH}"]']
        api.import_image_from_data(layer, repository=REPOSITORY, tag=tag, changes=changes)
    return name
