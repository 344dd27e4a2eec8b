"""Puts the agent together: journal, proxy, alive endpoint, runner, engine watchers, clock, link to the controller."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import structlog
from msgspec import Struct

from agent.alive import running_alive_endpoint
from agent.clock import Clock
from agent.instances import Instances
from agent.journal import Journal, open_journal
from agent.link import AgentLink, Locator
from agent.operations import Operations
from agent.provision import Describe, Provision
from agent.proxy import running_proxy
from agent.runner import Runner
from agent.runtime import EventKind, Runtime
from dht.contracts import Content
from dht.peer_http import PeerHttp
from dht.tasks import OwnedTasks, running_loops
from protocol import link
from protocol.instances import InstanceReport
from protocol.problems import EngineUnavailable, Problem
from protocol.service import Allowed

log = structlog.get_logger(__name__)

TICK_S = 0.2
FIRST_LOOK_S = 10.0
MAX_LISTED = 2048
"""Digests of cached and of built services told to the controller; a frame must hold them."""


class AgentConfig(Struct, frozen=True, kw_only=True):
    """`host` is the address that clients use; port proxies listen on it. `memory_mb` is what services may use.
    `pause_after_s`: a service that nobody used for so long is frozen until a client connects or sends; 0: never.
    `allowed`: how far a service may ask to be less confined than by default, where the region allows it, too.
    `ready_timeout_s`: a service that runs and is not ready after so long has failed.
    """

    host: str
    database: Path
    memory_mb: int = 2048
    alive_port: int = 5001
    labels: dict[str, str] = {}
    max_archive_bytes: int = 2 << 30
    concurrent_builds: int = 2
    concurrent_starts: int = 4
    pause_after_s: float = 0.0
    allowed: Allowed = Allowed()
    ready_timeout_s: float = 300.0


class Agent:
    """A running agent. `link` is None when it works without a controller."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        node: str,
        mesh: str,
        region: str,
        runtimes: Sequence[Runtime],
        content: Content,
        journal: Journal,
        instances: Instances,
        runner: Runner,
    ) -> None:
        self._config = config
        self._node, self._mesh, self._region = node, mesh, region
        self._runtimes = runtimes
        self._content = content
        self._journal = journal
        self.instances = instances
        self.runner = runner
        self.link: AgentLink | None = None

    def reports(self) -> tuple[InstanceReport, ...]:
        return self.instances.reports()

    async def resources(self) -> link.Resources:
        """What the agent offers now; a runtime that is away has nothing built."""
        cached = sorted(self._content.held())[:MAX_LISTED]
        candidates = {*cached, *self._journal.described()}
        working: list[str] = []
        built: set[str] = set()
        for runtime in self._runtimes:
            try:
                built |= await runtime.built(candidates)
                working.append(runtime.name)
            except EngineUnavailable as problem:
                log.debug("built-unknown", runtime=runtime.name, detail=problem.detail)
        return link.Resources(
            memory_total=self.instances.memory_mb,
            memory_free=self.instances.offered,
            runtimes=tuple(working),
            cached=tuple(cached),
            built=tuple(sorted(built)[:MAX_LISTED]),
            load=round(os.getloadavg()[0] / (os.cpu_count() or 1), 2),
        )

    async def hello(self) -> link.Hello:
        hello = link.Hello(
            version=link.LINK_VERSION,
            node=self._node,
            mesh=self._mesh,
            region=self._region,
            host=self._config.host,
            labels=self._config.labels,
            resources=await self.resources(),
            instances=self.reports(),
        )
        return link.fitted(hello)


@asynccontextmanager
async def running_agent(
    config: AgentConfig,
    *,
    node: str,
    mesh: str,
    region: str,
    runtimes: Sequence[Runtime],
    content: Content,
    describe: Describe,
    http: PeerHttp | None = None,
    locator: Locator | None = None,
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Agent]:
    """An agent whose instances of before are adopted when the block begins, and go on running when it ends.

    Without `http` and `locator` it has no link: for tests, and for one machine alone. Raises ConfigError.
    """
    async with AsyncExitStack() as stack:
        journal = stack.enter_context(open_journal(config.database))
        instances = Instances(journal, memory_mb=config.memory_mb, host=config.host, clock=Clock(clock, monotonic))
        provision = Provision(
            content,
            describe,
            journal,
            max_archive_bytes=config.max_archive_bytes,
            concurrent_builds=config.concurrent_builds,
        )
        commands = OwnedTasks()
        operations = Operations(instances, runtimes, provision, concurrent_starts=config.concurrent_starts)
        runner = Runner(
            instances,
            operations,
            provision,
            commands,
            labels=config.labels,
            allowed=config.allowed,
            ready_timeout_s=config.ready_timeout_s,
            pause_after_s=config.pause_after_s,
        )
        operations.proxy = await stack.enter_async_context(
            running_proxy(config.host, runner.on_traffic, runner.on_knock)
        )
        operations.alive = await stack.enter_async_context(
            running_alive_endpoint(config.alive_port, runner.addresses_of, runner.on_alive)
        )
        await stack.enter_async_context(commands)
        await runner.restore()
        agent = Agent(
            config,
            node=node,
            mesh=mesh,
            region=region,
            runtimes=runtimes,
            content=content,
            journal=journal,
            instances=instances,
            runner=runner,
        )
        looked = {runtime.name: asyncio.Event() for runtime in runtimes}
        loops = {f"events of {r.name}": _follow(runner, r, looked[r.name]) for r in runtimes}
        loops["agent clock"] = _let_time_pass(runner)
        if http is not None and locator is not None:
            agent.link = AgentLink(
                http,
                locator,
                runner,
                hello=agent.hello,
                resources=agent.resources,
                reports=agent.reports,
                subscribe=instances.subscribe,
            )
            loops["agent link"] = _after(looked.values(), agent.link.run())
        await stack.enter_async_context(running_loops(loops))
        await _first_look(looked.values())
        runner.resume_restarts()
        yield agent


async def _first_look(looked: Collection[asyncio.Event]) -> None:
    """Wait until each engine was looked at once: then adoption is done."""
    try:
        async with asyncio.timeout(FIRST_LOOK_S):
            for event in looked:
                await event.wait()
    except TimeoutError:
        log.warning("engine-slow", fix="Instances of before are adopted as soon as the engine answers.")


async def _after(looked: Collection[asyncio.Event], work: Coroutine[Any, Any, None]) -> None:
    """`work` once the engines were looked at, so that the first Hello tells what is true."""
    try:
        await _first_look(looked)
    except BaseException:
        work.close()
        raise
    await work


async def _follow(runner: Runner, runtime: Runtime, looked: asyncio.Event) -> None:
    async for event in runtime.events():
        try:
            if event.kind is EventKind.AWAY:
                log.warning("engine-away", runtime=runtime.name)
                runner.engine_away(runtime)
            elif event.kind is EventKind.BACK:
                await runner.relist(runtime)
            else:
                await runner.observe_named(event.instance)
        except Problem as problem:
            # Its engine went again, or the disk is full: the next event or BACK makes good for this one.
            log.warning("event-not-handled", runtime=runtime.name, kind=event.kind, detail=problem.detail)
        looked.set()


async def _let_time_pass(runner: Runner) -> None:
    while True:
        await asyncio.sleep(TICK_S)
        try:
            runner.tick()
        except Problem as problem:  # a full disk: time passes again with the next tick
            log.warning("tick-failed", detail=problem.detail)
