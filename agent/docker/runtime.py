"""Services as Docker containers. Everything that the engine knows of this node carries the label of the node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from contextlib import aclosing, asynccontextmanager
from typing import Any

import docker.errors
import structlog
from msgspec import Struct

from agent.docker.build_turn import build_turn
from agent.docker.containers import (
    INSTANCE_LABEL,
    NODE_LABEL,
    attachments_of,
    condition_of,
    container_name,
    container_options,
    host_options,
    joined_sandbox,
    networks_of,
    seen,
)
from agent.docker.engine import Api, DockerEngine, engine_at
from agent.docker.events import ImagesChanged, SandboxEnded, engine_events
from agent.docker.image_quota import ImageQuota, Pinned
from agent.docker.images import DIGEST_LABEL as IMAGE_LABEL
from agent.docker.images import REPOSITORY, BuildSettings, DockerImages, Unpack, image_tag
from agent.docker.networks import Bridge, DockerNetworks
from agent.docker.sandboxes import DockerSandboxes, Sandbox, joined
from agent.runtime import (
    IMAGE_GONE,
    LOG_LINES,
    PORT_TAKEN,
    Capabilities,
    Condition,
    EventKind,
    OnProgress,
    RuntimeEvent,
    RuntimeInstance,
    Source,
    Workload,
    artifact_of,
    last_lines,
    unheard,
)
from dht.tasks import OwnedTasks
from protocol.instances import Progress
from protocol.problems import EngineUnavailable, StartFailed

log = structlog.get_logger(__name__)

STOP_S = 5


class DockerConfig(Struct, frozen=True, kw_only=True):
    """`url` None: DOCKER_HOST or the default socket. `base_image_aliases`: images of FROM lines to local images.
    `sandboxes`: how many networks wait for the next services; 0: none. `image_quota`: bytes for services' images.
    """

    url: str | None = None
    base_image_aliases: dict[str, str] = {}
    cpus: float | None = None
    build: BuildSettings = BuildSettings()
    subnets: tuple[str, ...] = ("172.16.0.0/12",)
    """A group's stated subnet is honoured inside these, and where the machine's own networks do not overlap it."""
    sandboxes: int = 2
    image_quota: int = 20 * 10**9


class DockerRuntime:
    name = "docker"

    def __init__(
        self,
        engine: DockerEngine,
        config: DockerConfig,
        node: str,
        unpack: Unpack | None = None,
        *,
        pinned: Pinned,
        tasks: OwnedTasks,
    ) -> None:
        self._engine = engine
        self._config = config
        self._node = node
        self._images = DockerImages(engine, config.base_image_aliases, unpack, settings=config.build)
        self._quota = ImageQuota(
            engine, quota=config.image_quota, repository=REPOSITORY, label=IMAGE_LABEL, pinned=pinned
        )
        self._tasks = tasks
        self._networks = DockerNetworks(engine, node, subnets=config.subnets)
        self.sandboxes = DockerSandboxes(engine, self._networks, node, size=config.sandboxes, tasks=tasks)
        self._made: set[str] = set()
        self._capabilities: Capabilities | None = None

    async def capabilities(self) -> Capabilities:
        if self._capabilities is None:
            version = await self._engine.call(lambda api: api.version())
            self._capabilities = Capabilities(frozenset({"docker_container"}), str(version["Version"]))
        return self._capabilities

    async def prepare(
        self, source: Source, *, force_rebuild: bool = False, on_progress: OnProgress | None = None
    ) -> str:
        tell = on_progress or unheard
        artifact = artifact_of(source.descriptor, source.variant)
        engine = await self._engine.identity()
        async with build_turn(engine, image_tag(source.digest, artifact), lambda: tell(_ELSEWHERE)):
            if not force_rebuild and (ready := await self._images.find(source.digest, artifact)) is not None:
                return ready
            tell(Progress("build", "building the image"))
            return await self._make(source, force_rebuild=force_rebuild, on_progress=tell)

    async def _make(self, source: Source, *, force_rebuild: bool, on_progress: OnProgress) -> str:
        replaced = await self._images.identity(source) if force_rebuild else None
        image = await self._images.make(source, force_rebuild=force_rebuild, on_progress=_on_loop(on_progress))
        self._quota.touch(image)
        self._tasks.run(self._tidy(source, replaced), name="image quota")
        return image

    async def built(self, digests: Collection[str]) -> frozenset[str]:
        return await self._images.built(digests)

    async def image_of(self, digest: str, artifact: str | None) -> str | None:
        image = await self._images.find(digest, artifact)
        if image is not None:
            self._quota.touch(image)
        return image

    async def gateways(self, workload: Workload) -> tuple[str, ...]:
        async with self._networks.lock:
            return tuple(bridge.gateway for bridge in await self._networks.ensure(workload.networks) if bridge.gateway)

    async def start(self, workload: Workload) -> RuntimeInstance:
        if workload.instance in self._made and await self._start_existing(workload.instance):
            return await self._inspect(container_name(self._node, workload.instance))
        await self.sandboxes.release(workload.instance)
        try:
            return await self._start_joined(workload) or await self._start_alone(workload)
        except docker.errors.APIError as error:
            if error.status_code == 409 and workload.instance not in self._made:  # it is here, unknown to this process
                self._made.add(workload.instance)
                return await self.start(workload)
            self._networks.forget()
            await self.remove(workload.instance)
            raise _start_failed(error) from error

    async def pause(self, instance: str) -> None:
        await self._tolerating({404, 409}, lambda api, name: api.pause(name), instance)

    async def resume(self, instance: str) -> None:
        await self._tolerating({404, 409, 500}, lambda api, name: api.unpause(name), instance)

    async def stop(self, instance: str) -> None:
        await self.resume(instance)  # a frozen process cannot end
        await self._tolerating({304, 404}, lambda api, name: api.stop(name, timeout=STOP_S), instance)

    async def remove(self, instance: str) -> None:
        name = container_name(self._node, instance)
        try:
            inspection = await self._engine.call(lambda api: api.inspect_container(name))
        except docker.errors.NotFound:
            pass
        else:
            await self._tolerating(
                {404, 409}, lambda api, name: api.remove_container(name, force=True, v=True), instance
            )
            await self._networks.drop_unused(networks_of(inspection))
        self._made.discard(instance)
        await self.sandboxes.release(instance)

    async def inspect(self, instance: str) -> RuntimeInstance | None:
        ends = self._engine.ends
        try:
            found = await self._inspect(container_name(self._node, instance))
        except docker.errors.NotFound:
            return None
        if found.condition is Condition.EXITED:
            await self._engine.stayed(ends)
        return found

    async def adopt(self) -> list[RuntimeInstance]:
        await self._networks.drop_abandoned()
        self._networks.forget()
        filters = {"label": f"{NODE_LABEL}={self._node}"}
        listed = await self._engine.call(lambda api: api.containers(all=True, filters=filters))
        await self.sandboxes.adopt(listed, joined(listed, INSTANCE_LABEL))
        found = []
        for container in listed:
            if INSTANCE_LABEL not in container["Labels"]:
                continue
            try:
                found.append(await self._inspect(container["Id"]))
            except docker.errors.NotFound:
                continue
        self._made |= {instance.instance for instance in found}
        return found

    async def events(self) -> AsyncGenerator[RuntimeEvent, None]:
        async with aclosing(engine_events(self._engine, self._node)) as events:
            try:
                async for event in events:
                    match event:
                        case ImagesChanged():
                            self._images.changed()
                        case SandboxEnded(container):
                            if (instance := self.sandboxes.ended(container)) is not None:
                                yield RuntimeEvent(EventKind.CHANGED, instance)
                        case RuntimeEvent(kind):
                            if kind is not EventKind.CHANGED:
                                self._images.watch(kind is EventKind.BACK)
                            if kind is EventKind.BACK:
                                self.sandboxes.refill_soon()
                            yield event
            finally:
                self._images.watch(False)

    async def logs(self, instance: str, lines: int = LOG_LINES) -> tuple[str, ...]:
        name = container_name(self._node, instance)
        try:
            return last_lines(await self._engine.call(lambda api: _tail(api, name, lines)), lines)
        except docker.errors.APIError as error:
            log.debug("logs-unavailable", instance=instance, error=str(error))
            return ()

    def clear_scratch(self) -> None:
        """Remove what a killed node left of its builds."""
        self._images.clear_scratch()

    async def close(self) -> None:
        """Leave no network behind that nobody uses. An engine that is away by now keeps it for the next start."""
        try:
            await self.sandboxes.close()
            await self._networks.drop_own()
        except (EngineUnavailable, docker.errors.APIError) as error:
            log.debug("own-network-kept", error=str(error))

    async def _start_existing(self, instance: str) -> bool:
        """Start a container that is there. One that cannot start any more (its network is gone) is removed."""
        name = container_name(self._node, instance)
        try:
            inspection = await self._engine.call(lambda api: api.inspect_container(name))
            sandbox = joined_sandbox(inspection)
            if sandbox is None or await self.sandboxes.lookup(sandbox) is not None:
                await self._engine.call(lambda api: api.start(name))
                return True
        except docker.errors.NotFound as error:
            if "No such container" in str(error):
                return False
        except docker.errors.APIError as error:
            raise _start_failed(error) from error
        await self._engine.call(lambda api: api.remove_container(name, force=True, v=True))
        return False

    async def _start_joined(self, workload: Workload) -> RuntimeInstance | None:
        """Start it in a waiting sandbox. None if it wants a network of its own, or no sandbox is to be had."""
        if workload.networks or workload.published:
            return None
        sandbox = self.sandboxes.take(workload.instance)
        if sandbox is None:
            return None
        name = container_name(self._node, workload.instance)
        try:
            await self._engine.call(lambda api: self._create_and_start(api, workload, sandbox))
        except docker.errors.APIError as error:
            if _reason(error) == IMAGE_GONE or (error.status_code == 409 and "already in use" in str(error)):
                await self.sandboxes.release(workload.instance)
                raise
            # The sandbox may have died, and the engine says so in many ways. Whatever it was, the other way will tell.
            log.info("sandbox-refused", instance=workload.instance, error=_said(error))
            await self.remove(workload.instance)
            return None
        self._made.add(workload.instance)
        log.debug("sandbox-joined", container=name, sandbox=sandbox.id)
        return RuntimeInstance(
            instance=workload.instance,
            digest=workload.digest,
            condition=Condition.RUNNING,
            attachments=(sandbox.attachment,),
        )

    async def _tidy(self, source: Source, replaced: str | None) -> None:
        """After an image was made: remove the one that it replaced, and what is too much now."""
        if replaced is not None and await self._images.identity(source) != replaced:
            await self._quota.remove(replaced)
        await self._quota.enforce()

    def _create_and_start(self, api: Api, workload: Workload, sandbox: Sandbox) -> None:
        self._create(api, workload, (sandbox.bridge,), sandbox=sandbox.id)
        api.start(container_name(self._node, workload.instance))

    async def _start_alone(self, workload: Workload) -> RuntimeInstance:
        name = container_name(self._node, workload.instance)
        async with self._networks.lock:
            bridges = await self._networks.ensure(workload.networks)
            await self._engine.call(lambda api: self._create(api, workload, bridges))
        self._made.add(workload.instance)
        await self._engine.call(lambda api: api.start(name))
        return await self._inspect(name)

    def _create(self, api: Api, workload: Workload, bridges: tuple[Bridge, ...], *, sandbox: str | None = None) -> None:
        first = bridges[0]
        nano_cpus = int(self._config.cpus * 10**9) if self._config.cpus is not None else None
        host = api.create_host_config(**host_options(workload, first, sandbox=sandbox, nano_cpus=nano_cpus))
        created = api.create_container(**container_options(workload, first, self._node), host_config=host)
        for bridge in bridges[1:]:
            api.connect_container_to_network(created["Id"], bridge.name)

    async def _inspect(self, name: str) -> RuntimeInstance:
        inspection: dict[str, Any] = await self._engine.call(lambda api: api.inspect_container(name))
        joined_to = joined_sandbox(inspection)
        if joined_to is not None:
            return await self._inspect_joined(name, inspection, joined_to)
        names = networks_of(inspection)
        await self._networks.learn(names)
        bridges = [Bridge(network, self._networks.gateway(network)) for network in names]
        return seen(inspection, attachments_of(inspection, bridges))

    async def _inspect_joined(self, name: str, inspection: dict[str, Any], joined_to: str) -> RuntimeInstance:
        """A service whose sandbox died cannot be reached any more: it is ended, and a restart makes both anew."""
        sandbox = await self.sandboxes.lookup(joined_to)
        if sandbox is not None:
            return seen(inspection, (sandbox.attachment,))
        if condition_of(inspection) is not Condition.EXITED:
            log.warning("sandbox-lost", container=name, sandbox=joined_to)
            await self._engine.call(lambda api: _end(api, name))
            inspection = await self._engine.call(lambda api: api.inspect_container(name))
        return seen(inspection, ())

    async def _tolerating(self, statuses: set[int], work: Callable[[Api, str], object], instance: str) -> None:
        """Do it; an answer that means "it is so already" is fine."""
        name = container_name(self._node, instance)
        try:
            await self._engine.call(lambda api: work(api, name))
        except docker.errors.APIError as error:
            if error.status_code not in statuses:
                raise EngineUnavailable(
                    f"the Docker engine refuses: {_said(error)}", fix="See the engine's log."
                ) from error


@asynccontextmanager
async def running_docker(
    config: DockerConfig, node: str, *, unpack: Unpack | None = None, pinned: Pinned | None = None
) -> AsyncIterator[DockerRuntime]:
    """The runtime, whether its engine answers by now or not: each call raises EngineUnavailable until it does.

    `pinned`: see `ImageQuota`; None: nothing is.
    """
    async with engine_at(config.url) as engine, OwnedTasks() as tasks:
        runtime = DockerRuntime(engine, config, node, unpack, pinned=pinned or _nothing, tasks=tasks)
        runtime.clear_scratch()
        try:
            yield runtime
        finally:
            await runtime.close()


async def _nothing() -> Collection[str]:
    return ()


_ELSEWHERE = Progress("build", "another agent of this machine makes the image; waiting for it")


def _on_loop(on_progress: OnProgress) -> OnProgress:
    """Progress told by a build's thread, passed on in the event loop."""
    loop = asyncio.get_running_loop()

    def tell(step: Progress) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(on_progress, step)

    return tell


def _end(api: Api, name: str) -> None:
    """Kill a container and wait for its end; fine if it ended by itself."""
    for step in (api.unpause, api.kill, api.wait):  # the engine does not kill a frozen process
        try:
            step(name)
        except docker.errors.APIError as error:
            if error.status_code not in {409, 500}:
                raise


def _tail(api: Api, name: str, lines: int) -> str:
    """The end of the log. It is read whole: `log_config` bounds it to 2 MB."""
    text: bytes = api.logs(name, stdout=True, stderr=True, tail=lines)
    return text.decode("utf-8", errors="replace")


_REMEDIES = {
    PORT_TAKEN: "Another program took the port: start the service again to get another one.",
    IMAGE_GONE: "The image was removed from the engine: start with force_rebuild.",
    "engine-refused": "Check the image's command and the service's description.",
}


def _start_failed(error: docker.errors.APIError) -> StartFailed:
    reason = _reason(error)
    detail = f"the Docker engine did not start the container: {_said(error)}"
    return StartFailed(detail, fix=_REMEDIES[reason], reason=reason, log=[])


def _reason(error: docker.errors.APIError) -> str:
    """The engine says it in words alone."""
    said = _said(error)
    if "port is already allocated" in said or "address already in use" in said:
        return PORT_TAKEN
    return IMAGE_GONE if "No such image" in said else "engine-refused"


def _said(error: docker.errors.APIError) -> str:
    return str(error.explanation or error)[:500]
