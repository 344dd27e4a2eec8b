"""An agent that speaks the real link but runs nothing: starts are booked, take as long as a test says, or fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from protocol import link
from protocol.instances import InstanceReport, PortBinding, Progress, State
from protocol.problems import NoCapacity, Problem, UnknownInstance

PATH = "/peer/agent-link"


class FakeAgent:
    """`gate` cleared: starts wait for it. `failures`: raised by the next starts, one each. `service`: the port binding
    of every instance, for tests in which something really listens there."""

    def __init__(self, node: str, region: str, *, memory: int = 1000, mesh: str = "demo", **labels: str) -> None:
        self.node, self.region, self.mesh, self.memory = node, region, mesh, memory
        self.labels = labels
        self.instances: dict[str, InstanceReport] = {}
        self.commands: list[link.Command] = []
        self.failures: list[Problem] = []
        self.built: set[str] = set()
        self.service: PortBinding | None = None
        self.host = "127.0.0.1"
        self.gate = asyncio.Event()
        self.gate.set()
        self.clock = time.time
        self._obeying: list[asyncio.Task[None]] = []
        self._socket: aiohttp.ClientWebSocketResponse | None = None

    @property
    def starts(self) -> list[link.Start]:
        return [c for c in self.commands if isinstance(c, link.Start)]

    @property
    def resources(self) -> link.Resources:
        used = sum(i.mem for i in self.instances.values() if i.state in (State.STARTING, State.RUNNING))
        return link.Resources(self.memory, self.memory - used, (), tuple(sorted(self.built)), ("docker",))

    @property
    def hello(self) -> link.Hello:
        return link.Hello(
            version=link.LINK_VERSION,
            node=self.node,
            mesh=self.mesh,
            region=self.region,
            host="127.0.0.1",
            labels=self.labels,
            resources=self.resources,
            instances=tuple(self.instances.values()),
        )

    @asynccontextmanager
    async def linked(self, url: str) -> AsyncIterator[FakeAgent]:
        """Connected and welcomed for the time of the block."""
        headers = {"Test-Peer": f"{self.node} {self.mesh} {self.region} agent"}
        async with aiohttp.ClientSession() as session, session.ws_connect(url + PATH, headers=headers) as socket:
            await socket.send_bytes(link.encode(self.hello))
            welcome = link.decode_from_controller(await socket.receive_bytes())
            assert isinstance(welcome, link.Welcome)
            self._socket = socket
            async with asyncio.TaskGroup() as group:
                reader = group.create_task(self._read(socket, group))
                try:
                    yield self
                finally:
                    reader.cancel()
                    for task in self._obeying:
                        task.cancel()
                    await socket.close()

    async def report(self, instance: str, **changes: Any) -> None:
        """The instance changed by itself."""
        self.instances[instance] = _replace(self.instances[instance], **changes)
        await self._send(link.InstanceChanged(self.instances[instance]))

    async def beat(self) -> None:
        await self._send(link.Heartbeat(self.resources))

    async def _send(self, message: link.FromAgent) -> None:
        assert self._socket is not None
        if not self._socket.closed:
            await self._socket.send_bytes(link.encode(message))

    async def _read(self, socket: aiohttp.ClientWebSocketResponse, group: asyncio.TaskGroup) -> None:
        async for message in socket:
            command = link.decode_from_controller(message.data)
            assert not isinstance(command, link.Welcome)
            self.commands.append(command)
            self._obeying.append(group.create_task(self._obey(command)))

    async def _obey(self, command: link.Command) -> None:
        try:
            await self._send(await self._do(command))
        except Problem as problem:
            await self._send(link.Refused(command.command, problem.to_dict()))

    async def _do(self, command: link.Command) -> link.Done | link.Prepared:
        if isinstance(command, link.Start):
            return await self._start(command)
        if isinstance(command, link.Prepare):
            self.built.add(command.digest)
            return link.Prepared(command.command, {"build": 2.0})
        report = self.instances.get(command.instance)
        if report is None:
            raise UnknownInstance(command.instance)
        if isinstance(command, link.Stop):
            report = _replace(report, state=State.STOPPED, reason=command.reason)
        elif isinstance(command, link.Restart):
            report = _replace(report, state=State.RUNNING, expires_at=self._expiry(report.alive_time))
        elif isinstance(command, link.ReadLog):
            return link.Done(command.command, report, lines=tuple(f"line {n}" for n in range(command.lines)))
        elif isinstance(command, link.Extend):
            asked = report.alive_time if command.alive_time is None else command.alive_time
            longest = max(asked, report.alive_time) if command.exact else asked
            report = _replace(report, expires_at=self._expiry(longest))
        elif isinstance(command, link.Wake) and report.state is State.PAUSED:
            report = _replace(report, state=State.RUNNING)
        elif isinstance(command, link.Remove):
            report = _replace(report, state=State.REMOVED, reason=command.reason)
        self.instances[command.instance] = report
        if report.state is State.REMOVED:
            del self.instances[command.instance]
        return link.Done(command.command, report)

    async def _start(self, command: link.Start) -> link.Done:
        if self.failures:
            raise self.failures.pop(0)
        alive_time = 60 if command.alive_time is None else command.alive_time
        report = InstanceReport(
            instance=command.instance,
            digest=command.digest,
            service_id="svc",
            service_name="service",
            state=State.STARTING,
            mem=100,
            host=self.host,
            variant=command.variant,
            ports=(self.service or PortBinding(8000, 40000 + len(self.commands)),),
            alive_time=alive_time,
        )
        if self.resources.memory_free < report.mem:
            raise NoCapacity("the agent is full")
        self.instances[command.instance] = report
        await self._send(link.InstanceChanged(report))
        await self._send(link.ProgressMade(command.command, Progress("build", "building")))
        await self.gate.wait()
        report = _replace(report, state=State.RUNNING, started_at=self.clock(), expires_at=self._expiry(alive_time))
        self.instances[command.instance] = report
        self.built.add(command.digest)
        return link.Done(command.command, report, {"fetch": 1.0, "build": 2.0, "start": 3.0, "ready": 4.0})

    def _expiry(self, alive_time: int) -> float | None:
        return self.clock() + alive_time if alive_time else None


def _replace(report: InstanceReport, **changes: Any) -> InstanceReport:

    return msgspec.structs.replace(report, **changes)
