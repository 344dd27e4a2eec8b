"""Services as Docker containers. Everything that the engine knows of this node carries the label of the node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any

import docker.errors
import structlog
from msgspec import Struct

from agent.docker_containers import (
    NODE_LABEL,
    container_name,
    container_options,
    host_options,
    networks_of,
    seen,
)
from agent.docker_engine import Api, DockerEngine, engine_at
from agent.docker_events import engine_events
from agent.docker_images import DockerImages, Unpack
from agent.docker_networks import Bridge, DockerNetworks
from agent.runtime import (
    LOG_LINES,
    Capabilities,
    OnProgress,
    RuntimeEvent,
    RuntimeInstance,
    Source,
    Workload,
    artifact_of,
    last_lines,
)
from protocol.instances import Progress
from protocol.problems import EngineUnavailable, StartFailed

log = structlog.get_logger(__name__)

STOP_S = 5


class DockerConfig(Struct, frozen=True, kw_only=True):
    """`url` None: DOCKER_HOST or the default socket. `base_image_aliases`: images of FROM lines to local images."""

    url: str | None = None
    base_image_aliases: dict[str, str] = {}
    pids_limit: int = 256
    cpus: float | None = None


class DockerRuntime:
    name = "docker"

    def __init__(self, engine: DockerEngine, config: DockerConfig, node: str, unpack: Unpack | None = None) -> None:
        self._engine = engine
        self._config = config
        self._node = node
        self._images = DockerImages(engine, config.base_image_aliases, unpack)
        self._networks = DockerNetworks(engine, node)
        self._capabilities: Capabilities | None = None

    async def capabilities(self) -> Capabilities:
        if self._capabilities is None:
            version = await self._engine.call(lambda api: api.version())
            self._capabilities = Capabilities(frozenset({"docker_container"}), str(version["Version"]))
        return self._capabilities

    async def prepare(
        self, source: Source, *, force_rebuild: bool = False, on_progress: OnProgress | None = None
    ) -> str:
        if not force_rebuild:
            ready = await self._images.find(source.digest, artifact_of(source.descriptor, source.variant))
            if ready is not None:
                return ready
        loop_progress = _on_loop(on_progress)
        return await self._images.make(source, force_rebuild=force_rebuild, on_progress=loop_progress)

    async def built(self, digests: Collection[str]) -> frozenset[str]:
        return await self._images.built(digests)

    async def image_of(self, digest: str, artifact: str | None) -> str | None:
        return await self._images.find(digest, artifact)

    async def gateways(self, workload: Workload) -> tuple[str, ...]:
        async with self._networks.lock:
            return tuple(bridge.gateway for bridge in await self._networks.ensure(workload.networks) if bridge.gateway)

    async def start(self, workload: Workload) -> RuntimeInstance:
        name = container_name(self._node, workload.instance)
        if await self._start_existing(name):
            return await self._inspect(name)
        try:
            async with self._networks.lock:
                bridges = await self._networks.ensure(workload.networks)
                await self._engine.call(lambda api: self._create(api, workload, bridges))
            await self._engine.call(lambda api: api.start(name))
        except docker.errors.APIError as error:
            self._networks.forget()
            await self.remove(workload.instance)
            raise _start_failed(error) from error
        return await self._inspect(name)

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
            return
        await self._tolerating({404, 409}, lambda api, name: api.remove_container(name, force=True, v=True), instance)
        await self._networks.drop_unused(networks_of(inspection))

    async def inspect(self, instance: str) -> RuntimeInstance | None:
        try:
            return await self._inspect(container_name(self._node, instance))
        except docker.errors.NotFound:
            return None

    async def adopt(self) -> list[RuntimeInstance]:
        self._networks.forget()
        filters = {"label": f"{NODE_LABEL}={self._node}"}
        listed = await self._engine.call(lambda api: api.containers(all=True, filters=filters))
        found = []
        for container in listed:
            try:
                found.append(await self._inspect(container["Id"]))
            except docker.errors.NotFound:
                continue
        return found

    def events(self) -> AsyncIterator[RuntimeEvent]:
        return engine_events(self._engine, self._node)

    async def logs(self, instance: str, lines: int = LOG_LINES) -> tuple[str, ...]:
        name = container_name(self._node, instance)
        try:
            return last_lines(await self._engine.call(lambda api: _tail(api, name, lines)), lines)
        except docker.errors.APIError as error:
            log.debug("logs-unavailable", instance=instance, error=str(error))
            return ()

    async def close(self) -> None:
        """Leave no network behind that nobody uses. An engine that is away by now keeps it for the next start."""
        try:
            await self._networks.drop_own()
        except (EngineUnavailable, docker.errors.APIError) as error:
            log.debug("own-network-kept", error=str(error))

    async def _start_existing(self, name: str) -> bool:
        """Start a container that is there. One that cannot start any more (its network is gone) is made anew."""
        try:
            await self._engine.call(lambda api: api.start(name))
        except docker.errors.NotFound as error:
            if "No such container" in str(error):
                return False
            await self._engine.call(lambda api: api.remove_container(name, force=True, v=True))
            return False
        except docker.errors.APIError as error:
            raise _start_failed(error) from error
        return True

    def _create(self, api: Api, workload: Workload, bridges: tuple[Bridge, ...]) -> None:
        first = bridges[0]
        nano_cpus = int(self._config.cpus * 10**9) if self._config.cpus is not None else None
        host = api.create_host_config(
            **host_options(workload, first, pids_limit=self._config.pids_limit, nano_cpus=nano_cpus)
        )
        created = api.create_container(**container_options(workload, first, self._node), host_config=host)
        for bridge in bridges[1:]:
            api.connect_container_to_network(created["Id"], bridge.name)

    async def _inspect(self, name: str) -> RuntimeInstance:
        inspection: dict[str, Any] = await self._engine.call(lambda api: api.inspect_container(name))
        names = networks_of(inspection)
        await self._networks.learn(names)
        return seen(inspection, [Bridge(network, self._networks.gateway(network)) for network in names])

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
    config: DockerConfig, node: str, *, unpack: Unpack | None = None
) -> AsyncIterator[DockerRuntime]:
    """The runtime, whether its engine answers by now or not: each call raises EngineUnavailable until it does."""
    async with engine_at(config.url) as engine:
        runtime = DockerRuntime(engine, config, node, unpack)
        try:
            yield runtime
        finally:
            await runtime.close()


def _on_loop(on_progress: OnProgress | None) -> OnProgress:
    """Progress told by a build's thread, passed on in the event loop."""
    loop = asyncio.get_running_loop()

    def tell(step: Progress) -> None:
        if on_progress is not None and not loop.is_closed():
            loop.call_soon_threadsafe(on_progress, step)

    return tell


def _tail(api: Api, name: str, lines: int) -> str:
    """The end of the log. It is read whole: `log_config` bounds it to 2 MB."""
    text: bytes = api.logs(name, stdout=True, stderr=True, tail=lines)
    return text.decode("utf-8", errors="replace")


def _start_failed(error: docker.errors.APIError) -> StartFailed:
    said = _said(error)
    fix = "Check the image's command and the service's description."
    if "port is already allocated" in said or "address already in use" in said:
        fix = "Another program took the port: start the service again to get another one."
    elif "No such image" in said:
        fix = "The image was removed from the engine: start with force_rebuild."
    return StartFailed(
        f"the Docker engine did not start the container: {said}", fix=fix, reason="engine-refused", log=[]
    )


def _said(error: docker.errors.APIError) -> str:
    return str(error.explanation or error)[:500]
